//! A model from a HuggingFace `config.json` of the GQA/MHA or DeepSeek-MLA families.
//!
//! A config that names state which no component here holds (a sliding window in force, recurrent or
//! convolution state, cross attention, ...) is refused by key: a layout that forgot it would move a
//! cache that is silently incomplete. Defaults are taken only where `transformers` itself computes
//! them from other keys. Multi-token-prediction layers (`num_nextn_predict_layers`) are not counted:
//! their KV exists only under speculative decoding.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::model::{Attention, DType, IndexK, MAX_HEADS, MAX_LAYERS, Model, ModelError, SCALE_BLOCK};

/// Longest vector that a config may ask for.
const MAX_DIM: u32 = 1 << 16;

/// Why a config is not a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("{file}:{line}:{column}: not JSON: {message}")]
    Json {
        /// The file, as the caller named it.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// JSON, but not an object.
    #[error("{file}: the top level is {value}, expected an object with `model_type`")]
    NotAnObject {
        /// The file.
        file: String,
        /// What stands there.
        value: String,
    },
    /// A key is missing, has a wrong value, or names what cannot be laid out.
    #[error("{file}: `{key}` is {value}, expected {expected}")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// Its value, or "missing".
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Each value is possible, together they are not.
    #[error("{file}: {source}")]
    Model {
        /// The file.
        file: String,
        /// What is wrong with them.
        source: ModelError,
    },
}

/// How a family writes its attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// `num_key_value_heads`, and `head_dim` or `hidden_size / num_attention_heads`.
    Gqa,
    /// As `Gqa`, and without `num_key_value_heads` every head has its own KV.
    GqaOrMha,
    /// As `Gqa`, with a `head_dim` of its own that is not `hidden_size / num_attention_heads`.
    GqaHeadDim,
    /// `kv_lora_rank` and `qk_rope_head_dim`.
    Mla,
    /// As `Mla`, with index keys.
    MlaIndexed,
}

const FAMILIES: &[(&str, Family)] = &[
    ("llama", Family::GqaOrMha),
    ("mistral", Family::Gqa),
    ("mixtral", Family::Gqa),
    ("phi3", Family::Gqa),
    ("qwen2", Family::Gqa),
    ("qwen2_moe", Family::Gqa),
    ("qwen3", Family::GqaHeadDim),
    ("qwen3_moe", Family::GqaHeadDim),
    ("deepseek_v2", Family::Mla),
    ("deepseek_v3", Family::Mla),
    ("kimi_k2", Family::Mla),
    ("deepseek_v32", Family::MlaIndexed),
];

/// Parts of keys which name state that has no component here, with what they mean.
const STATE: &[(&str, &str)] = &[
    ("mamba", "recurrent state"),
    ("ssm", "recurrent state"),
    ("rwkv", "recurrent state"),
    ("recurrent", "recurrent state"),
    ("lru_", "recurrent state"),
    ("state_size", "recurrent state"),
    ("d_state", "recurrent state"),
    ("time_mix", "recurrent state"),
    ("conv_", "convolution state"),
    ("_conv", "convolution state"),
    ("linear_attn", "linear attention"),
    ("linear_attention", "linear attention"),
    ("linear_num_", "linear attention"),
    ("linear_key_", "linear attention"),
    ("linear_value_", "linear attention"),
    ("lightning", "linear attention"),
    ("hybrid", "layers without attention"),
    ("layers_block_type", "layers without attention"),
    ("block_types", "layers without attention"),
    ("attn_layer", "layers without attention"),
    ("full_attn", "layers without full attention"),
    ("full_attention", "layers without full attention"),
    ("attn_type_list", "layers without full attention"),
    ("attention_chunk", "chunked attention"),
    ("attention_window", "windowed attention"),
    ("window_size", "windowed attention"),
    ("sliding_window_pattern", "a sliding window"),
    ("cross_attention", "cross attention"),
    ("cross_attn", "cross attention"),
    ("is_encoder_decoder", "cross attention"),
    ("encoder_layers", "cross attention"),
    ("kv_shared", "layers that share KV"),
    ("cla_", "layers that share KV"),
    ("compress_ratio", "a compressed cache"),
    ("text_config", "a model inside a multi-modal one"),
];

/// Reads the text of a `config.json`; `file` is only used in errors.
///
/// # Errors
/// Names the file, the key, its value and what would be right.
pub fn from_json(file: &str, text: &str) -> Result<Model, ConfigError> {
    let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::Json {
        file: file.to_owned(),
        line: e.line(),
        column: e.column(),
        message: e.to_string(),
    })?;
    let Value::Object(map) = &value else {
        return Err(ConfigError::NotAnObject { file: file.to_owned(), value: shown(&value) });
    };
    let config = Config { file, map };
    let (model_type, family) = config.family()?;
    config.refuse_state()?;
    let context_len = config.int("max_position_embeddings", u32::MAX)?;
    config.refuse_window(model_type, context_len)?;
    let q_heads = config.int("num_attention_heads", MAX_HEADS)?;
    let (attention, index_k) = match family {
        Family::Mla | Family::MlaIndexed => {
            let attention = Attention::Mla {
                kv_lora_rank: config.int("kv_lora_rank", MAX_DIM)?,
                qk_rope_head_dim: config.int("qk_rope_head_dim", MAX_DIM)?,
            };
            (attention, config.index_k(family)?)
        }
        _ => {
            config.refuse_mla()?;
            let kv_heads = config.kv_heads(family, q_heads)?;
            (Attention::Gqa { kv_heads, head_dim: config.head_dim(family, q_heads)? }, None)
        }
    };
    let model = Model {
        name: config.name(model_type),
        layers: config.int("num_hidden_layers", MAX_LAYERS)?,
        q_heads,
        attention,
        context_len,
        index_k,
    };
    model.validate(DType::Bf16).map_err(|source| ConfigError::Model { file: file.to_owned(), source })?;
    Ok(model)
}

struct Config<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    /// The value of a key; `null` counts as missing.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Key {
            file: self.file.to_owned(),
            key: key.to_owned(),
            value: self.map.get(key).map_or_else(|| "missing".to_owned(), shown),
            expected: expected.into(),
        }
    }

    fn int(&self, key: &str, max: u32) -> Result<u32, ConfigError> {
        let value = self.get(key).and_then(Value::as_u64).filter(|&v| v >= 1);
        value
            .and_then(|v| u32::try_from(v).ok())
            .filter(|&v| v <= max)
            .ok_or_else(|| self.wrong(key, format!("a whole number from 1 to {max}")))
    }

    fn family(&self) -> Result<(&'static str, Family), ConfigError> {
        let known = self
            .get("model_type")
            .and_then(Value::as_str)
            .and_then(|name| FAMILIES.iter().find(|family| family.0 == name));
        known.copied().ok_or_else(|| {
            let names: Vec<&str> = FAMILIES.iter().map(|family| family.0).collect();
            self.wrong("model_type", format!("one of {}", names.join(", ")))
        })
    }

    fn name(&self, model_type: &str) -> String {
        let path = self.get("_name_or_path").and_then(Value::as_str).unwrap_or_default();
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if last.is_empty() { model_type.to_owned() } else { last.to_owned() }
    }

    fn kv_heads(&self, family: Family, q_heads: u32) -> Result<u32, ConfigError> {
        const KEY: &str = "num_key_value_heads";
        // LlamaConfig: "if it is not specified, will default to num_attention_heads".
        if family == Family::GqaOrMha && self.get(KEY).is_none() {
            return Ok(q_heads);
        }
        let kv_heads = self.int(KEY, MAX_HEADS)?;
        if !q_heads.is_multiple_of(kv_heads) {
            return Err(self.wrong(KEY, format!("a divisor of num_attention_heads, {q_heads}")));
        }
        Ok(kv_heads)
    }

    fn head_dim(&self, family: Family, q_heads: u32) -> Result<u32, ConfigError> {
        if family == Family::GqaHeadDim || self.get("head_dim").is_some() {
            return self.int("head_dim", MAX_DIM);
        }
        let hidden = self.int("hidden_size", u32::MAX)?;
        if !hidden.is_multiple_of(q_heads) {
            let expected = format!("a multiple of num_attention_heads, {q_heads}, as there is no head_dim");
            return Err(self.wrong("hidden_size", expected));
        }
        Ok(hidden / q_heads)
    }

    fn index_k(&self, family: Family) -> Result<Option<IndexK>, ConfigError> {
        const KEY: &str = "index_head_dim";
        let named = self.map.iter().any(|(key, value)| key.starts_with("index_") && in_force(value));
        if family != Family::MlaIndexed && !named {
            return Ok(None);
        }
        let head_dim = self.int(KEY, MAX_DIM)?;
        if !head_dim.is_multiple_of(SCALE_BLOCK) {
            return Err(self.wrong(KEY, format!("a multiple of {SCALE_BLOCK}: one scale per block")));
        }
        Ok(Some(IndexK { head_dim }))
    }

    /// Keys of MLA in a model whose family has K and V buffers.
    fn refuse_mla(&self) -> Result<(), ConfigError> {
        for (key, value) in self.map {
            if (key == "kv_lora_rank" || key.starts_with("index_")) && in_force(value) {
                let expected = "no such key in a model_type without multi-head latent attention";
                return Err(self.wrong(key, expected));
            }
        }
        Ok(())
    }

    fn refuse_state(&self) -> Result<(), ConfigError> {
        for (key, value) in self.map {
            if key == "layer_types" {
                let full = |v: &Value| v.as_str() == Some("full_attention");
                if in_force(value) && !value.as_array().is_some_and(|list| list.iter().all(full)) {
                    return Err(
                        self.wrong(key, "only `full_attention`: no component holds another type's state")
                    );
                }
                continue;
            }
            let state = STATE.iter().find(|(part, _)| key.contains(part));
            if let Some((_, what)) = state
                && in_force(value)
            {
                return Err(
                    self.wrong(key, format!("no such key: it names {what}, which no component holds"))
                );
            }
        }
        Ok(())
    }

    /// A sliding window below the context length. Its switch and default differ between families.
    fn refuse_window(&self, model_type: &str, context_len: u32) -> Result<(), ConfigError> {
        const KEY: &str = "sliding_window";
        const SWITCH: &str = "use_sliding_window";
        match self.map.get(SWITCH) {
            Some(Value::Bool(false)) => return Ok(()),
            // Qwen2Config, Qwen3Config: off unless switched on.
            None | Some(Value::Null) if model_type.starts_with("qwen") => return Ok(()),
            None | Some(Value::Null | Value::Bool(true)) => {}
            Some(_) => return Err(self.wrong(SWITCH, "true or false")),
        }
        let expected = format!(
            "null or at least max_position_embeddings, {context_len}: no component holds a sliding window"
        );
        match self.map.get(KEY) {
            // MistralConfig: 4096 when the key is not there. Qwen2Config: 4096 when switched on.
            None if model_type == "mistral" || self.get(SWITCH).is_some() => Err(self.wrong(KEY, expected)),
            Some(value) if in_force(value) && value.as_u64() < Some(u64::from(context_len)) => {
                Err(self.wrong(KEY, expected))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a value switches something on: not null, false, 0 or empty.
fn in_force(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value in an error: JSON, cut short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
