//! `kvrail models`.

use std::fmt::Write as _;

use models::{Attention, DType, Layout, PageOrder, Parallel, presets};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NameError, StrDeserializer};

use super::{Failure, ModelsArgs, print};
use crate::spec::rephrase;

pub(super) fn models(args: &ModelsArgs) -> Result<(), Failure> {
    let name: StrDeserializer<'_, NameError> = args.dtype.as_str().into_deserializer();
    let dtype = DType::deserialize(name).map_err(|error| {
        Failure::input(format_args!("--dtype {}: {}", args.dtype, rephrase(&error.to_string())))
    })?;
    if let Some(bad) = args.tp.iter().find(|tp| !(1..=models::parallel::MAX_WORLD).contains(*tp)) {
        return Err(Failure::input(format_args!(
            "--tp {bad}: expected 1 to {}",
            models::parallel::MAX_WORLD
        )));
    }
    print(&table(dtype, &args.tp));
    Ok(())
}

fn table(dtype: DType, tps: &[u32]) -> String {
    let mut out = format!("bytes of KV per token, {dtype}; per rank at TP\n");
    let _ = write!(out, "{:<18}{:>7}{:>18}{:>10}{:>10}", "model", "layers", "attention", "context", "token");
    for tp in tps {
        let _ = write!(out, "{:>10}", format!("TP{tp}"));
    }
    out.push('\n');
    for model in presets::all() {
        let attention = match model.attention {
            Attention::Gqa { kv_heads, head_dim } => format!("GQA {kv_heads} x {head_dim}"),
            Attention::Mla { kv_lora_rank, qk_rope_head_dim } => {
                format!("MLA {kv_lora_rank} + {qk_rope_head_dim}")
            }
        };
        let token = model.bytes_per_token(dtype).map_or_else(|_| "-".to_owned(), |bytes| bytes.to_string());
        let _ = write!(
            out,
            "{:<18}{:>7}{attention:>18}{:>10}{token:>10}",
            model.name, model.layers, model.context_len
        );
        for tp in tps {
            // A dash where the model cannot be cut that way.
            let layout = Layout::new(&model, dtype, Parallel::tp(*tp), 1, PageOrder::TokenMajor);
            let rank = layout
                .ok()
                .and_then(|layout| layout.ranks().first().map(models::RankLayout::bytes_per_token));
            let rank = rank.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
            let _ = write!(out, "{rank:>10}");
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_a_line() {
        let text = table(DType::Bf16, &[1, 8]);
        assert_eq!(text.lines().count(), 2 + presets::names().count());
        let line = |name: &str| -> Vec<String> {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            line.split_whitespace().rev().take(3).map(str::to_owned).collect()
        };
        assert_eq!(line("llama-3.1-70b"), ["40960", "327680", "327680"]);
        assert_eq!(line("deepseek-v3 "), ["70272", "70272", "70272"]);
        assert_eq!(line("qwen2.5-7b")[0], "-");
    }
}
