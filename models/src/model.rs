//! A model as far as its KV cache is concerned, and the element types of the cache.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most layers a model may have.
pub const MAX_LAYERS: u32 = 16_384;
/// Most attention heads a model may have, query or KV.
pub const MAX_HEADS: u32 = 16_384;
/// Most KV bytes a token may have over all layers. With at most 2^32 tokens, byte counts of a
/// request fit 64 bits.
pub const MAX_TOKEN_BYTES: u64 = 1 << 32;
/// Elements that share one fp32 scale in DeepSeek's fp8 formats.
pub const SCALE_BLOCK: u32 = 128;

/// Element type of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DType {
    /// 2 bytes.
    Bf16,
    /// 2 bytes.
    Fp16,
    /// 1 byte, no scales in the row.
    Fp8,
    /// DeepSeek's fp8 latent row (MLA only): fp8 latent, one fp32 scale per 128 of it, bf16 rope
    /// part. 656 bytes for 512 + 64, as in FlashMLA's fp8 KV cache.
    Fp8Packed,
}

impl DType {
    /// Bytes of one element; of the latent part for [`DType::Fp8Packed`].
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::Fp16 => 2,
            Self::Fp8 | Self::Fp8Packed => 1,
        }
    }

    /// The name in experiment files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp8 => "fp8",
            Self::Fp8Packed => "fp8-packed",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a layer's attention keeps per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Attention {
    /// Multi-head (`kv_heads` equal to the query heads), grouped-query or multi-query attention: a K
    /// and a V row of `kv_heads * head_dim` elements.
    Gqa {
        /// KV heads of the whole model.
        kv_heads: u32,
        /// Elements per head.
        head_dim: u32,
    },
    /// Multi-head latent attention (DeepSeek-V2): one row of `kv_lora_rank + qk_rope_head_dim`
    /// elements, the same on every TP rank.
    Mla {
        /// Elements of the compressed latent.
        kv_lora_rank: u32,
        /// Elements of the rotary key part.
        qk_rope_head_dim: u32,
    },
}

/// DeepSeek-V3.2's index keys: per token and layer `head_dim` fp8 values and one fp32 scale per 128
/// of them, the same on every TP rank, whatever the dtype of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexK {
    /// Elements, a multiple of 128.
    pub head_dim: u32,
}

impl IndexK {
    /// Bytes of values per token.
    #[must_use]
    pub fn value_bytes(self) -> u64 {
        u64::from(self.head_dim)
    }

    /// Bytes of scales per token.
    #[must_use]
    pub fn scale_bytes(self) -> u64 {
        u64::from(self.head_dim / SCALE_BLOCK) * 4
    }

    /// Values and scales of one token.
    #[must_use]
    pub fn row_bytes(self) -> u64 {
        self.value_bytes() + self.scale_bytes()
    }
}

/// The geometry of a model's KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Preset name, or the name in the config file.
    pub name: String,
    /// Transformer layers, all of which keep KV.
    pub layers: u32,
    /// Query heads: attention TP must divide them.
    pub q_heads: u32,
    /// What each layer keeps.
    pub attention: Attention,
    /// Longest context in tokens, prompt and output together.
    pub context_len: u32,
    /// Index keys beside the KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_k: Option<IndexK>,
}

/// Why a model's numbers make no KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ModelError {
    /// A dimension is zero or absurd.
    #[error("model `{model}`: {key} is {value}, must be 1 to {max}")]
    Dimension {
        /// Model name.
        model: String,
        /// Field name.
        key: &'static str,
        /// Its value.
        value: u32,
        /// The largest value allowed.
        max: u32,
    },
    /// A dimension must be a multiple of the scale block.
    #[error("model `{model}`: {key} is {value}, must be a multiple of {SCALE_BLOCK} ({why})")]
    ScaleBlock {
        /// Model name.
        model: String,
        /// Field name.
        key: &'static str,
        /// Its value.
        value: u32,
        /// What asks for it.
        why: &'static str,
    },
    /// A format for MLA on a model without it.
    #[error("model `{model}`: dtype fp8-packed is a format of MLA latents; use bf16, fp16 or fp8")]
    PackedNeedsMla {
        /// Model name.
        model: String,
    },
    /// The product of the dimensions is absurd.
    #[error("model `{model}`: a token has {bytes} bytes of KV, at most {MAX_TOKEN_BYTES} are supported")]
    TokenBytes {
        /// Model name.
        model: String,
        /// Bytes over all layers.
        bytes: u128,
    },
}

impl Model {
    /// Bytes of one token in one K or V buffer holding all heads, or in one latent buffer.
    ///
    /// # Errors
    /// When the model does not pass [`Model::validate`] with this dtype.
    pub fn row_bytes(&self, dtype: DType) -> Result<u64, ModelError> {
        self.validate(dtype)?;
        Ok(self.row_bytes_unchecked(dtype))
    }

    /// Bytes of KV (and index keys) that one token keeps over all layers and heads, each once.
    ///
    /// # Errors
    /// When the model does not pass [`Model::validate`] with this dtype.
    pub fn bytes_per_token(&self, dtype: DType) -> Result<u64, ModelError> {
        self.validate(dtype)?;
        // Fits: validate() bounds it.
        Ok(u64::try_from(self.token_bytes(dtype)).unwrap_or(u64::MAX))
    }

    /// Checks that the numbers make a KV cache: nothing zero, nothing absurd, dtype applicable.
    ///
    /// # Errors
    /// Names the field, its value and what would be right.
    pub fn validate(&self, dtype: DType) -> Result<(), ModelError> {
        let model = || self.name.clone();
        let dimension = |key, value: u32, max: u32| {
            if value == 0 || value > max {
                return Err(ModelError::Dimension { model: model(), key, value, max });
            }
            Ok(())
        };
        dimension("layers", self.layers, MAX_LAYERS)?;
        dimension("q_heads", self.q_heads, MAX_HEADS)?;
        dimension("context_len", self.context_len, u32::MAX)?;
        match self.attention {
            Attention::Gqa { kv_heads, head_dim } => {
                dimension("kv_heads", kv_heads, MAX_HEADS)?;
                dimension("head_dim", head_dim, u32::MAX)?;
                if dtype == DType::Fp8Packed {
                    return Err(ModelError::PackedNeedsMla { model: model() });
                }
            }
            Attention::Mla { kv_lora_rank, qk_rope_head_dim } => {
                dimension("kv_lora_rank", kv_lora_rank, u32::MAX)?;
                dimension("qk_rope_head_dim", qk_rope_head_dim, u32::MAX)?;
                if dtype == DType::Fp8Packed && kv_lora_rank % SCALE_BLOCK != 0 {
                    return Err(ModelError::ScaleBlock {
                        model: model(),
                        key: "kv_lora_rank",
                        value: kv_lora_rank,
                        why: "dtype fp8-packed",
                    });
                }
            }
        }
        if let Some(IndexK { head_dim }) = self.index_k {
            dimension("index_k.head_dim", head_dim, u32::MAX)?;
            if head_dim % SCALE_BLOCK != 0 {
                return Err(ModelError::ScaleBlock {
                    model: model(),
                    key: "index_k.head_dim",
                    value: head_dim,
                    why: "one fp32 scale per block",
                });
            }
        }
        let bytes = self.token_bytes(dtype);
        if bytes > u128::from(MAX_TOKEN_BYTES) {
            return Err(ModelError::TokenBytes { model: model(), bytes });
        }
        Ok(())
    }

    /// Bytes of all heads' row; the products of two `u32` and a dtype fit 64 bits.
    pub(crate) fn row_bytes_unchecked(&self, dtype: DType) -> u64 {
        match self.attention {
            Attention::Gqa { kv_heads, head_dim } => {
                (u64::from(kv_heads) * u64::from(head_dim)).saturating_mul(dtype.bytes())
            }
            Attention::Mla { kv_lora_rank, qk_rope_head_dim } => {
                let (latent, rope) = (u64::from(kv_lora_rank), u64::from(qk_rope_head_dim));
                match dtype {
                    DType::Fp8Packed => latent + latent / u64::from(SCALE_BLOCK) * 4 + rope * 2,
                    _ => (latent + rope) * dtype.bytes(),
                }
            }
        }
    }

    fn token_bytes(&self, dtype: DType) -> u128 {
        let buffers: u128 = match self.attention {
            Attention::Gqa { .. } => 2,
            Attention::Mla { .. } => 1,
        };
        let index = self.index_k.map_or(0, IndexK::row_bytes);
        let layer = buffers * u128::from(self.row_bytes_unchecked(dtype)) + u128::from(index);
        u128::from(self.layers) * layer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    #[test]
    fn a_model_round_trips_and_refuses_unknown_keys() {
        for model in presets::all() {
            let json = serde_json::to_string(&model).unwrap();
            assert_eq!(serde_json::from_str::<Model>(&json).unwrap(), model);
            let bad = json.replacen("\"kind\"", "\"kv_head\":8,\"kind\"", 1);
            let error = serde_json::from_str::<Model>(&bad).unwrap_err().to_string();
            assert!(error.contains("kv_head"), "{error}");
        }
        assert_eq!(serde_json::from_str::<DType>("\"fp8-packed\"").unwrap(), DType::Fp8Packed);
    }

    #[test]
    fn impossible_numbers_name_the_field() {
        let llama = presets::lookup("llama-3.1-8b").unwrap();
        let none = Model { layers: 0, ..llama.clone() };
        let error = none.bytes_per_token(DType::Bf16).unwrap_err().to_string();
        assert_eq!(error, "model `llama-3.1-8b`: layers is 0, must be 1 to 16384");
        let attention = Attention::Gqa { kv_heads: 16_384, head_dim: u32::MAX };
        let huge = Model { attention, ..llama.clone() };
        assert!(matches!(huge.row_bytes(DType::Bf16), Err(ModelError::TokenBytes { .. })));
        let index = Model { index_k: Some(IndexK { head_dim: 100 }), ..llama };
        let error = index.validate(DType::Bf16).unwrap_err().to_string();
        assert!(error.contains("index_k.head_dim is 100, must be a multiple of 128"), "{error}");
    }
}
