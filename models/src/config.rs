//! A model from a HuggingFace `config.json`.
