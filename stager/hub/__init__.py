"""Where models come from: ModelScope, Hugging Face, a folder."""
