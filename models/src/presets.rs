//! Models by name, from the `config.json` that each one's authors published, and a few tiny ones.

use thiserror::Error;

use crate::model::{Attention, IndexK, Model};

/// (name, layers, query heads, attention, context length, index-K head dim)
type Row = (&'static str, u32, u32, Attention, u32, Option<u32>);

const fn gqa(kv_heads: u32, head_dim: u32) -> Attention {
    Attention::Gqa { kv_heads, head_dim }
}

const fn mla(kv_lora_rank: u32, qk_rope_head_dim: u32) -> Attention {
    Attention::Mla { kv_lora_rank, qk_rope_head_dim }
}

// Values of the same-named model repositories on huggingface.co: num_hidden_layers,
// num_attention_heads, num_key_value_heads and head_dim or kv_lora_rank and qk_rope_head_dim,
// max_position_embeddings, index_head_dim. The tiny ones are ours: a whole context is 2 MiB at most for
// all but the last one (3.1 MiB) at bf16, and all shard up to TP16.
const PRESETS: &[Row] = &[
    ("llama-3.1-8b", 32, 32, gqa(8, 128), 131_072, None),
    ("llama-3.1-70b", 80, 64, gqa(8, 128), 131_072, None),
    ("qwen2.5-7b", 28, 28, gqa(4, 128), 131_072, None),
    ("qwen2.5-72b", 80, 64, gqa(8, 128), 131_072, None),
    ("qwen3-8b", 36, 32, gqa(8, 128), 40_960, None),
    ("qwen3-235b-a22b", 94, 64, gqa(4, 128), 40_960, None),
    ("mixtral-8x7b", 32, 32, gqa(8, 128), 32_768, None),
    ("deepseek-v2-lite", 27, 16, mla(512, 64), 163_840, None),
    ("deepseek-v3", 61, 128, mla(512, 64), 163_840, None),
    ("deepseek-r1", 61, 128, mla(512, 64), 163_840, None),
    ("deepseek-v3.2", 61, 128, mla(512, 64), 163_840, Some(128)),
    ("kimi-k2", 61, 64, mla(512, 64), 131_072, None),
    ("tiny-gqa", 4, 16, gqa(8, 16), 1_024, None),
    ("tiny-mla", 4, 16, mla(128, 16), 1_024, None),
    ("tiny-gqa-2", 3, 16, gqa(2, 4), 8_192, None),
    ("tiny-mla-index", 4, 16, mla(24, 8), 4_096, Some(128)),
];

/// A name that no preset has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown model `{name}`: did you mean `{nearest}`? Presets: {presets}")]
pub struct UnknownModel {
    /// The name asked for.
    pub name: String,
    /// The preset with the most similar name.
    pub nearest: &'static str,
    /// Every preset name.
    pub presets: String,
}

fn model(row: &Row) -> Model {
    let &(name, layers, q_heads, attention, context_len, index) = row;
    Model {
        name: name.to_owned(),
        layers,
        q_heads,
        attention,
        context_len,
        index_k: index.map(|head_dim| IndexK { head_dim }),
    }
}

/// Every preset, in the order of the table.
#[must_use]
pub fn all() -> Vec<Model> {
    PRESETS.iter().map(model).collect()
}

/// Every preset name.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|row| row.0)
}

/// The preset of that name, whatever its case.
///
/// # Errors
/// [`UnknownModel`] with the nearest name and the whole list.
pub fn lookup(name: &str) -> Result<Model, UnknownModel> {
    let wanted = name.trim().to_ascii_lowercase();
    if let Some(row) = PRESETS.iter().find(|row| row.0 == wanted) {
        return Ok(model(row));
    }
    // A name longer than any preset is compared by its beginning: the distance is quadratic.
    let short: Vec<char> = wanted.chars().take(64).collect();
    let nearest = names().min_by_key(|preset| distance(&short, preset)).unwrap_or_default();
    Err(UnknownModel { name: name.to_owned(), nearest, presets: names().collect::<Vec<_>>().join(", ") })
}

/// Levenshtein distance.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, cb) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &ca) in a.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DType;

    #[test]
    fn bytes_per_token_of_public_models() {
        for (name, bytes) in [
            ("llama-3.1-8b", 131_072),
            ("llama-3.1-70b", 327_680),
            ("qwen2.5-7b", 57_344),
            ("qwen2.5-72b", 327_680),
            ("qwen3-8b", 147_456),
            ("qwen3-235b-a22b", 192_512),
            ("mixtral-8x7b", 131_072),
            ("deepseek-v2-lite", 31_104),
            ("deepseek-v3", 70_272),
            ("deepseek-r1", 70_272),
            ("kimi-k2", 70_272),
            ("deepseek-v3.2", 70_272 + 61 * 132),
        ] {
            let model = lookup(name).unwrap();
            assert_eq!(model.bytes_per_token(DType::Bf16), Ok(bytes), "{name}");
            assert_eq!(model.bytes_per_token(DType::Fp16), Ok(bytes), "{name}");
            if model.index_k.is_none() {
                assert_eq!(model.bytes_per_token(DType::Fp8), Ok(bytes / 2), "{name}");
            }
        }
    }

    #[test]
    fn rows() {
        let llama = lookup("llama-3.1-8b").unwrap();
        assert_eq!(llama.row_bytes(DType::Bf16), Ok(2048));
        assert!(llama.row_bytes(DType::Fp8Packed).is_err());
        let deepseek = lookup("deepseek-v3").unwrap();
        assert_eq!(deepseek.row_bytes(DType::Bf16), Ok(1152));
        assert_eq!(deepseek.row_bytes(DType::Fp8), Ok(576));
        assert_eq!(deepseek.row_bytes(DType::Fp8Packed), Ok(656));
    }

    #[test]
    fn names_are_found_or_suggested() {
        assert_eq!(lookup("DeepSeek-V3").unwrap().name, "deepseek-v3");
        let error = lookup("llama3.1-8b").unwrap_err();
        assert_eq!(error.nearest, "llama-3.1-8b");
        assert!(error.to_string().contains("tiny-mla"), "{error}");
        assert!(lookup("").is_err());
        assert!(lookup(&"x".repeat(1_000_000)).is_err());
    }

    #[test]
    fn distances_count_single_changes() {
        let of = |a: &str, b| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!([of("", ""), of("abc", ""), of("", "abc"), of("abc", "abc")], [0, 3, 3, 0]);
        assert_eq!(
            [of("kitten", "sitting"), of("flaw", "lawn"), of("ab", "ba"), of("a", "xyz")],
            [3, 2, 2, 3]
        );
    }

    #[test]
    fn tiny_models_are_tiny() {
        for model in all().iter().filter(|m| m.name.starts_with("tiny")) {
            let bytes = model.bytes_per_token(DType::Bf16).unwrap();
            assert!(bytes * u64::from(model.context_len) < 4 << 20, "{}", model.name);
        }
    }

    #[test]
    fn every_preset_is_valid() {
        for model in all() {
            assert_eq!(model.validate(DType::Bf16), Ok(()));
        }
    }
}
