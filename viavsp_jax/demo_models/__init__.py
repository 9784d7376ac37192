"""Small pre-trained models for the demo: an AV-HuBERT and a LLaMA with its tokenizer."""
