"""The settings of an exported model, as its config.json holds them."""

from typing import Any

from transformers import PretrainedConfig

# What makes transformers' AutoConfig, AutoModel and pipeline find the code beside config.json.
CODE: dict[str, Any] = {
    "architectures": ["ViAVSPModel"],
    "auto_map": {"AutoConfig": "configuration_viavsp.ViAVSPConfig", "AutoModel": "modeling_viavsp.ViAVSPModel"},
    "custom_pipelines": {
        "automatic-speech-recognition": {"impl": "pipeline_viavsp.ViAVSPPipeline", "pt": ["AutoModel"]}
    },
}


class ViAVSPConfig(PretrainedConfig):
    """What decoding must know of a model that python -m convert.to_hf exported."""

    model_type = "viavsp"

    def __init__(
        self,
        feature_width: int = 1024,
        end_token: str = "</s>",
        decoding: dict[str, Any] | None = None,
        quantization: str = "none",
        recognition_instruction: str = "",
        translation_instruction: str = "",
        languages: dict[str, str] | None = None,
        other_end_ids: list[int] | None = None,
        chat: list[str] | None = None,
        encoder: dict[str, Any] | None = None,
        trained_encoder: bool = False,
        cluster_layer: int | None = None,
        longest_clip: int = 76,
        ctc: dict[str, int] | None = None,
        ctc_weight: float = 0.0,
        confidence: dict[str, float] | None = None,
        compression: str = "clusters",
        **settings: Any,
    ):
        """
        Args:
          feature_width: values of a frame that the encoder hands to the projector.
          end_token: closes every text.
          decoding: the search, in the words of transformers' `generate`, as the training's config has it.
          quantization: how the language model was stored in training: none, int8 (which is used as none is) or nf4.
          recognition_instruction, translation_instruction: what the model is asked, the second one where other
            languages than Vietnamese are spoken or wanted; {source} and {target} stand for them.
          languages: their names in an instruction, by code.
          other_end_ids: tokens that end what is generated besides the end token; None: there are none.
          chat: what stands before the instruction and after the speech, of the model's chat template; None: no chat.
          encoder: the sizes of the AV-HuBERT encoder; None: the export has none and takes features.
          trained_encoder: whether it was trained. Then clusters come from the encoder as it was before.
          cluster_layer: the encoder block, from 1, whose output is clustered.
          longest_clip: frames of the longest clip that it was trained on.
          ctc: sizes of the CTC head: its units, which ctc_units.json holds, and the width of its hidden layer; None:
            there is none.
          ctc_weight: how much its log-probabilities count when hypotheses are ranked, see nbest_viavsp.py.
          confidence: how likely words are right, see the same; None: the training was not calibrated.
          compression: how frames become positions, see compression_viavsp.py.
        """
        self.feature_width = feature_width
        self.end_token = end_token
        self.decoding = decoding or {}
        self.quantization = quantization
        self.recognition_instruction = recognition_instruction
        self.translation_instruction = translation_instruction
        self.languages = languages or {}
        self.other_end_ids = other_end_ids or []
        self.chat = chat
        self.encoder = encoder
        self.trained_encoder = trained_encoder
        self.cluster_layer = cluster_layer
        self.longest_clip = longest_clip
        self.ctc = ctc
        self.ctc_weight = ctc_weight
        self.confidence = confidence
        self.compression = compression
        super().__init__(**settings)

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it: transformers puts classes, which are no JSON, in place of the pipeline's names."""
        return super().to_dict() | {"custom_pipelines": CODE["custom_pipelines"]}
