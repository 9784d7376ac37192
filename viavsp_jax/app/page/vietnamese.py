"""What the page says, in Vietnamese. See language.py.

Words that stay the same: khẩu hình (lips), âm thanh (sound), tiếng nói (speech), bản ghi (recording), tệp (file), nhận
dạng (transcribe), phụ đề (subtitles), khung hình (frame), phương án (hypothesis), mô hình (model), máy chủ (server).
"""

# By the English sentence. What only an expert can use of it, such as the reason that FFmpeg gives, may be left out.
SENTENCES = {
    # Labels.
    "ViAVSP: Vietnamese from lips and sound": "ViAVSP: tiếng Việt từ khẩu hình và âm thanh",
    "The demo model knows only 156 syllables of made-up sentences.": (
        "Mô hình thử nghiệm chỉ biết 156 âm tiết trong các câu được soạn sẵn."
    ),
    "The model was trained on {names}.": "Mô hình được huấn luyện trên dữ liệu {names}.",
    "Video": "Video",
    "Sound": "Âm thanh",
    "Try an example": "Dùng thử tệp mẫu",
    "What is used": "Nhận dạng dựa trên",
    "automatic": "tự động",
    "lips and sound": "khẩu hình và âm thanh",
    "sound alone": "chỉ âm thanh",
    "lips alone": "chỉ khẩu hình",
    "Transcribe": "Nhận dạng",
    "Go on with sound alone": "Tiếp tục chỉ với âm thanh",
    "Advanced": "Nâng cao",
    "Add babble to the sound": "Thêm tiếng ồn nhiều người nói vào âm thanh",
    "Signal-to-noise ratio, dB": "Tỉ số tín hiệu trên nhiễu (dB)",
    "Beams of the search": "Số nhánh tìm kiếm",
    "As the model sees it": "Khẩu hình mà mô hình nhìn thấy",
    "Download": "Tải về",
    "Make the subtitled video": "Tạo video có phụ đề",
    "Video with subtitles": "Video có phụ đề",
    "Up to {minutes} minutes and {size} MB. What you send is removed within an hour.": (
        "Tối đa {minutes} phút và {size} MB. Tệp bạn gửi sẽ được xóa trong vòng một giờ."
    ),
    # Progress.
    "reading the file": "đang đọc tệp",
    "finding the mouth": "đang tìm khuôn miệng",
    "finding speech": "đang tìm tiếng nói",
    "reading lips and speech": "đang nhận dạng khẩu hình và tiếng nói",
    "writing the video": "đang tạo video",
    "working": "đang xử lý",
    # The transcript.
    "Copy": "Sao chép",
    "Copied": "Đã sao chép",
    "No speech was found in this recording.": "Không tìm thấy tiếng nói trong bản ghi này.",
    "There is speech, but no word was recognised.": "Có tiếng nói, nhưng không nhận dạng được từ nào.",
    "<b>{time}</b> of recording": "bản ghi dài <b>{time}</b>",
    "<b>{seconds} s</b> of speech by {means}": "<b>{seconds} giây</b> tiếng nói ({means})",
    "<b>{frames}</b> frames merged into <b>{vectors}</b> vectors": (
        "<b>{frames}</b> khung hình gộp thành <b>{vectors}</b> vectơ"
    ),
    "computed in <b>{seconds} s</b>, real-time factor <b>{factor}</b>": (
        "xử lý trong <b>{seconds} giây</b>, hệ số thời gian thực <b>{factor}</b>"
    ),
    "face not seen in <b>{percent} %</b> of the pictures, its place guessed": (
        "không thấy khuôn mặt trong <b>{percent} %</b> số hình, nên vị trí được ước đoán"
    ),
    "The mouth, a picture each 0.2 seconds": "Khuôn miệng, cứ 0,2 giây một hình",
    "The sound": "Âm thanh",
    "{start}–{end} s": "{start}–{end} giây",
    "{start}–{end} s, {percent} % likely right": "{start}–{end} giây, khả năng đúng {percent} %",
    "{start}–{end} s: 1 frame": "{start}–{end} giây: 1 khung hình",
    "{start}–{end} s: {frames} frames": "{start}–{end} giây: {frames} khung hình",
    "Each block is a run of frames, averaged into one vector for the language model: {frames} "
    "frames, {vectors} vectors.": (
        "Mỗi ô là một chuỗi khung hình liền nhau, được lấy trung bình thành một vectơ cho mô hình "
        "ngôn ngữ: {frames} khung hình, {vectors} vectơ."
    ),
    "score": "điểm",
    "hypotheses of the search": "các phương án nhận dạng",
    # What the page itself says of a press.
    "Choose a video or a sound file first, or record one.": "Vui lòng chọn hoặc ghi video hay âm thanh trước.",
    "Something went wrong while this recording was transcribed; the server keeps a note of it.": (
        "Đã xảy ra lỗi khi nhận dạng bản ghi này. Máy chủ đã ghi lại lỗi."
    ),
    "Something went wrong while the video was made; the server keeps a note of it.": (
        "Đã xảy ra lỗi khi tạo video. Máy chủ đã ghi lại lỗi."
    ),
    "The recording is no longer here, please transcribe it once more.": (
        "Bản ghi không còn trên máy chủ, vui lòng nhận dạng lại."
    ),
    "This recording cannot be used.": "Không thể dùng bản ghi này. Vui lòng thử một tệp video hoặc âm thanh khác.",
    "A part of the recording is not used.": "Một phần của bản ghi không được dùng.",
    # What the gate refuses.
    "The file is too large, expected at most {size} MB.": "Tệp quá lớn, vui lòng chọn tệp không quá {size} MB.",
    "There is no room for more files at the moment, please try again later.": (
        "Máy chủ hiện không còn chỗ cho tệp mới, vui lòng thử lại sau."
    ),
    "The file is no longer here, please send it once more.": "Tệp không còn trên máy chủ, vui lòng gửi lại.",
    "The page is busy, please try again in a minute.": "Trang đang bận, vui lòng thử lại sau ít phút.",
    "This cannot be asked for.": "Không thể thực hiện yêu cầu này.",
    # Recordings without a face, and what is done then.
    "{file}: no face is seen in it, {expected}; the sound alone is used": (
        "{file}: không thấy khuôn mặt nào nhìn về phía máy quay, nên chỉ dùng âm thanh."
    ),
    "{file}: a face is seen in only {share} % of its pictures, {expected}; the sound alone is used": (
        "{file}: chỉ thấy khuôn mặt trong {share} % số hình, nên chỉ dùng âm thanh."
    ),
    "{error}; the sound alone is used": "Chỉ âm thanh của bản ghi được dùng.",
    "{file}: no face is seen in it, {expected}": (
        "{file}: không thấy khuôn mặt nào. Khuôn mặt cần đủ lớn, đủ rõ và nhìn về phía máy quay. Nếu không có, hãy chỉ "
        "dùng âm thanh."
    ),
    "{file}: a face is seen in only {share} % of its pictures, {expected}": (
        "{file}: chỉ thấy khuôn mặt trong {share} % số hình. Khuôn mặt cần đủ lớn, đủ rõ và nhìn về phía máy quay. Nếu "
        "không có, hãy chỉ dùng âm thanh."
    ),
    # Recordings that cannot be used.
    "{file}: not a media file that can be read ({reason}), expected a video or audio file, as mp4 or wav.": (
        "{file}: không đọc được tệp này. Vui lòng chọn tệp video hoặc âm thanh, chẳng hạn mp4 hoặc wav."
    ),
    "{file}: is longer than {minutes} minutes, expected at most so many.": (
        "{file}: bản ghi dài hơn {minutes} phút, vui lòng chọn bản ghi ngắn hơn."
    ),
    "{file}: pictures of {size}, expected at most {most} pixels.": (
        "{file}: hình có kích thước {size}, tối đa là {most} điểm ảnh."
    ),
    "{file}: has no sound, which the modality {modality} needs": (
        "{file}: không có âm thanh, nhưng cách nhận dạng đã chọn cần có âm thanh."
    ),
    "{file}: has no pictures, which the modality {modality} needs": (
        "{file}: không có hình, nhưng cách nhận dạng đã chọn cần có hình."
    ),
    "{file}: has no pictures to write subtitles on": "{file}: không có hình để ghi phụ đề.",
    "{file}: has neither pictures nor sound, expected a video or audio file.": (
        "{file}: không có hình và cũng không có âm thanh. Vui lòng chọn tệp video hoặc âm thanh."
    ),
    "{file}: has pictures and sound of kinds that there is no decoder for, expected a video or audio file.": (
        "{file}: hình và âm thanh thuộc loại không giải mã được. Vui lòng chọn tệp video hoặc âm thanh khác."
    ),
    "{file}: no sample of its sound could be decoded, expected speech.": "{file}: không giải mã được âm thanh.",
    "{file}: no picture of its video could be decoded.": "{file}: không giải mã được hình nào trong video.",
    "{file}: has a picture that cannot be converted ({reason}).": "{file}: có hình không chuyển đổi được.",
    "{file}: is empty, expected at least one frame": "{file}: bản ghi trống.",
    "{file}: no such file, expected a video or audio file.": "{file}: không còn tệp này, vui lòng gửi lại.",
    "{file}: its pictures leap from {start} s to {end} s.": (
        "{file}: thời gian của hình nhảy từ giây {start} đến giây {end}, có lẽ tệp bị hỏng."
    ),
    "{file}: its sound leaps by {seconds} s.": (
        "{file}: thời gian của âm thanh nhảy {seconds} giây, có lẽ tệp bị hỏng."
    ),
    "{file}: its sound begins {seconds} s after its pictures.": (
        "{file}: âm thanh bắt đầu sau hình {seconds} giây, có lẽ tệp bị hỏng."
    ),
    "{file}: its sound cannot be resampled ({reason}).": "{file}: không chuyển đổi được âm thanh.",
}

# By the keys of Gradio, which has no Vietnamese of its own.
GRADIO = {
    "audio.allow_recording_access": "Vui lòng cho phép dùng micrô để ghi âm.",
    "audio.audio": "Âm thanh",
    "audio.drop_to_upload": "Thả tệp âm thanh vào đây để tải lên",
    "audio.no_device_support": (
        "Không dùng được micrô hoặc máy quay. Vui lòng mở trang qua https hoặc localhost và cho phép trình duyệt dùng "
        "thiết bị."
    ),
    "audio.no_microphone": "Không tìm thấy micrô",
    "audio.pause": "Tạm dừng",
    "audio.play": "Phát",
    "audio.record": "Ghi",
    "audio.record_from_microphone": "Ghi âm từ micrô",
    "audio.recording_error": "Không thể bắt đầu ghi âm từ micrô.",
    "audio.resume": "Tiếp tục",
    "audio.stop": "Dừng",
    "audio.stop_recording": "Dừng ghi",
    "audio.waiting": "Đang chờ",
    "blocks.connection_can_break": (
        "Trên điện thoại, kết nối có thể bị ngắt và bạn mất lượt chờ nếu chuyển sang tab khác hoặc để máy ở chế độ ngủ."
    ),
    "blocks.long_requests_queue": "Hiện có nhiều người đang chờ.",
    "blocks.lost_connection": "Mất kết nối do bạn đã rời trang. Đang xếp hàng lại...",
    "blocks.waiting_for_inputs": "Tệp đang được tải lên, vui lòng thử lại sau khi xong.",
    "common.clear": "Xóa",
    "common.complete": "Hoàn tất",
    "common.download": "Tải về",
    "common.edit": "Sửa",
    "common.empty": "Trống",
    "common.error": "Lỗi",
    "common.language": "Ngôn ngữ",
    "common.loading": "Đang tải",
    "common.no_devices": "Không tìm thấy thiết bị",
    "common.or": "hoặc",
    "common.progress": "Tiến độ",
    "common.record": "Ghi",
    "common.remove": "Xóa",
    "common.share": "Chia sẻ",
    "common.stop_recording": "Dừng ghi",
    "common.submit": "Gửi",
    "common.undo": "Hoàn tác",
    "file.uploading": "Đang tải lên...",
    "image.allow_webcam_access": "Vui lòng cho phép dùng máy quay để ghi hình.",
    "image_editor.upload": "Tải lên",
    "image_editor.webcam": "Máy quay",
    "slider.slider": "Thanh trượt",
    "status.queue_position": "Đang chờ: {position}/{size}",
    "upload_text.click_to_upload": "Bấm để tải lên",
    "upload_text.drop_audio": "Thả tệp âm thanh vào đây",
    "upload_text.drop_file": "Thả tệp vào đây",
    "upload_text.drop_video": "Thả video vào đây",
    "upload_text.paste_clipboard": "Dán từ bộ nhớ tạm",
    "video.drop_to_upload": "Thả tệp video vào đây để tải lên",
}
