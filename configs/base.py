"""The reference's base recipe (v1.0): 30,000 updates of 8 clips, adapters and projector on cached features.

    python -m viavsp_jax.main --config=configs/base.py --workdir=runs/base \
        --config.llm.path=llm/vinallama --config.data.path=data/shards

The reference published 17.28 % WER and 10.56 % CER for its own run on the gated VASR test set; there the encoder
was trained too from update 18,000 on, here it stays frozen. A batch is one row of 8 clips, as the reference
accumulates 8 clips for an update.
"""

import ml_collections
from ml_collections import config_dict


def length(updates: int) -> config_dict.FieldReference:
    """Without a fixed type: a number of updates, or a share of all."""
    return config_dict.FieldReference(updates, field_type=object)


def get_config() -> ml_collections.ConfigDict:
    """Every setting there is, with the reference's value."""
    return ml_collections.ConfigDict({
        "seed": 0,
        # Compute and storage of the frozen model; adapters, projector and optimizer are float32 always.
        "dtype": "bfloat16",
        "updates": 30_000,
        "log_every": 100,
        "profile_steps": (),  # first and last update to trace for TensorBoard's profiler, e.g. 10,20
        "label_smoothing": 0.0,
        # Where curves and texts go besides TensorBoard: functions as MODULE:NAME. "wandb:init" is Weights & Biases; any
        # other takes the settings as `config`, too, and returns what has log(values, step=...) and finish().
        "trackers": (),
        # A work folder or an export, whose weights training begins with: with a new optimizer, on other data perhaps.
        "init_from": "",
        # What learns; the encoder does where it is part of the model.
        "train": {"parts": ("projector", "lora", "encoder", "ctc")},
        # What the backward pass computes again instead of keeping it in memory. none: nothing. elementwise: all but the
        # outputs of matrix products and of attention. layers: everything inside a layer.
        "remat": "elementwise",
        # Rows of a batch that a device works on at a time; its gradients are summed over all of its rows. 0: all.
        "device_rows": 0,
        "llm": {
            "path": "",  # a folder made by python -m convert.from_hf
            # Closes every label, and ends what is decoded. "": the tokenizer's own EOS. Where it is that, and
            # the model's generation_config.json or config.json lists it among others, these end it, too.
            "end_token": "</s>",
            # none: frozen weights in `dtype`. int8: kernels of the layers in 8 bits, with a scale for each output, for
            # decoding, which waits for weights to be read; with --mode=eval it does for checkpoints of `none`, too, and
            # the other way round, for exports always are of the weights before they were rounded. nf4: in 4 bits, as
            # bitsandbytes makes them. The reference trains its adapters against nf4, to fit one GPU; in bfloat16 the
            # 2.77 B weights take 5.5 GB, which a TPU chip or a slice of them has, and no time goes into dequantisation.
            "quantization": "none",
        },
        "prompt": {
            # What the model is asked, before the speech; {source} and {target} stand for names of languages. "": the
            # reference's words.
            "instruction": "",
            # True, for models that were tuned to chats: instruction and speech are what a user says in the model's own
            # chat template, and the label is the answer.
            "chat": False,
        },
        # As in peft. targets: any of q, k, v, o, gate, up, down. rslora: scaled by alpha / √rank, not alpha / rank.
        "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": ("q", "k", "v"), "rslora": False},
        # False: cached features of a frozen encoder, from shards of --kind=features. True: the encoder is part of the
        # model, reads shards of --kind=media, and learns after `freeze_updates` updates or such a share of all, as the
        # reference's does.
        "encoder": {
            "train": False,
            "path": "",  # a folder made by python -m convert.from_fairseq
            "freeze_updates": length(18_000),
            # running: BatchNorm by its running statistics, which stay. batch: by those of each clip, which are averaged
            # into the running ones, also while the encoder is frozen, as the reference does in training.
            "batch_norm": "running",
            "layer_drop": 0.1,
            "activation_dropout": 0.1,
        },
        # A head on the encoder's frames that spells words in `units` pieces of words, learned from the transcripts
        # (connectionist temporal classification): with it, words have times and confidence. `weight`: of its loss; 0:
        # there is none. At most 2048 units; `width` is that of its hidden layer.
        "ctc": {"weight": 0.0, "units": 2048, "width": 512},
        "data": {
            "path": "",  # a folder of shard folders, made by python -m viavsp_jax.prepare shards
            # Shard folders, mixed: MODALITY_CONDITION. With encoder.train, av_clean stands for audio and video of the
            # clips in media_clean, and av_lost25 for them with a quarter of the frames not seen.
            "train": ("av_clean",),
            # How often a clip of each of them is drawn, in proportion: (2, 1). (): in every epoch each clip once.
            "weights": (),
            # How the frames of a clip become positions of the language model, each the mean of a run of frames.
            # "clusters": of one K-Means cluster. "clusters+max:K": of one cluster, at most K frames. "pool:K": K
            # frames, whatever they are, so that shards need no K-Means. Of several one is drawn for each training clip,
            # from its id, the epoch and `seed`: the model then decodes by any of them. Validation is by the first.
            "compression": ("clusters",),
            # With encoder.train, what happens to a clip besides a random crop and flip; drawn from its id, the epoch
            # and `seed`.
            "augment": {
                # Of several `kinds` one is drawn: babble of other clips, a folder with recordings of noise (wav), or
                # one with media shards of them. In babble one of the numbers of `talkers` is heard: (1, 2) is a few
                # who interrupt.
                "noise": {
                    "probability": 0.0,
                    "kinds": ("babble",),
                    "snr_db": (-5.0, 0.0, 5.0, 10.0),
                    "talkers": (8,),
                },
                "drop_audio": 0.0,  # probability of leaving an audio-visual clip its video alone
                "drop_video": 0.0,
                # Spans of up to `frames` frames in which the mouth is not seen, so many: as behind a hand.
                "drop_frames": {"spans": 0, "frames": 10},
                # SpecAugment (arXiv:1904.08779): stretches of up to `frames` frames (of 40 ms) and ranges of up to
                # `bands` of the 26 bands that are left out of what is heard, so many of each.
                "mask": {"times": 0, "frames": 10, "ranges": 0, "bands": 6},
            },
            "feature_width": 1024,
            # -1: 8 rows or, on more than 8 devices, one for each and as much shorter.
            "rows": 1,
            # A VASR clip takes about 45 speech and 20 label positions, and 76 frames; the instruction before it, about
            # 15, is there once a row. No utterance may be longer than `window`, instruction included, since attention
            # looks no further back. With encoder.train every clip gets an equal share of the row's frames.
            "row": {"positions": 1024, "frames": 1024, "labels": 512, "clips": 8, "window": 192},
            # How long clips are, for --mode=compile, which sees none; here VASR's.
            "seconds": {"mean": 3.04, "longest": 3.04},
            # Records that do not fit a row, which are looked for before the first update and listed in too_long.jsonl
            # of the work folder. error: there are to be none. skip: they are left out, of validation too.
            "too_long": "error",
        },
        "optimizer": {
            "name": "adam",  # or adamw, whose weights decay by `weight_decay` times the learning rate
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # largest norm of all gradients together; 0: any
            # The rate rises to `peak_lr` in `warmup_updates`, stays in `hold_updates` and falls in `decay_updates`.
            # tri_stage: from a hundredth of the peak, and exponentially to a twentieth. cosine: to 0. constant: never.
            # Lengths are updates or, from 0.0 to 1.0, shares of `updates`.
            "schedule": "tri_stage",
            "peak_lr": 5e-4,
            "warmup_updates": length(10_000),
            "hold_updates": length(0),
            "decay_updates": length(20_000),
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        # Every so many updates the validation split is scored and a checkpoint saved. Kept are the last `keep` and the
        # best, by the accuracy of the split's label tokens or by the wer of `samples`. Training ends when in the last
        # `patience` of these no better one was found; 0: never.
        "checkpoint": {"every": 1_000, "keep": 1, "best_by": "accuracy", "patience": 0},
        # Clips of the validation split that are decoded greedily then; their texts are shown.
        "samples": {"clips": 8, "max_new_tokens": 100},
        "evaluate": {
            # As in `data.train`. av_clean_pool3, av_clean_max2 and av_clean_clusters are av_clean by `data.compression`
            # pool:3, clusters+max:2 and clusters.
            "names": ("av_clean",),
            "split": "test",
            "mapping": "",  # mapping.json of the corpus, for scores by channel
            # A row takes 0.1 GB of cache for the first 16 tokens of 20 beams, and at worst 2 GB for 300 of them (2.7 B
            # model in bfloat16). -1: two for each device.
            "rows": 4,
            "bucket": 64,  # prompts are padded to multiples of this, so that few programs compile
            # `compression` of what is decoded, as in `data.compression`; "": the first one there. `ctc_weight`: how
            # much the log-probability by the CTC head counts, beside that by the language model, when the hypotheses
            # that were found are ranked; -1: as --mode=calibrate chose, and until then 0. The others are the fields of
            # decoding.search.DecodingConfig. The parent project's recipe: do_sample=True, top_p=0.9,
            # length_penalty=0.0, and top_k=50, which is transformers' default.
            "decoding": {
                "max_new_tokens": 300,
                "num_beams": 20,
                # False, True or "never"; "never" is text, so no type is fixed.
                "early_stopping": config_dict.FieldReference(False, field_type=object),
                "min_new_tokens": 0,
                "length_penalty": 1.0,
                "repetition_penalty": 1.0,
                "do_sample": False,
                "top_k": 0,
                "top_p": 1.0,
                "seed": 0,
                "compression": "",
                "ctc_weight": -1.0,
            },
        },
    })  # fmt: skip
