//! HuggingFace `config.json` files: which load as which model, and how others are refused.

use models::{Attention, ConfigError, DType, Model, config, presets};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The keys that matter of each published config, with some that do not.
fn published() -> Vec<(&'static str, Value)> {
    vec![
        (
            "llama-3.1-8b",
            json!({"model_type": "llama", "_name_or_path": "x/llama-3.1-8b", "hidden_size": 4096,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "pretraining_tp": 1}),
        ),
        (
            "qwen2.5-7b",
            json!({"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "max_window_layers": 28,
                "max_position_embeddings": 131_072, "sliding_window": 4096,
                "use_sliding_window": false}),
        ),
        (
            "qwen3-235b-a22b",
            json!({"model_type": "qwen3_moe", "hidden_size": 4096, "head_dim": 128,
                "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
                "max_position_embeddings": 40_960, "sliding_window": null}),
        ),
        (
            "mixtral-8x7b",
            json!({"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8,
                "max_position_embeddings": 32_768, "sliding_window": null}),
        ),
        (
            "deepseek-v3",
            json!({"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
                "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512,
                "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
                "max_position_embeddings": 163_840, "num_nextn_predict_layers": 1}),
        ),
        (
            "deepseek-v3.2",
            json!({"model_type": "deepseek_v32", "num_hidden_layers": 61,
                "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
                "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
                "max_position_embeddings": 163_840}),
        ),
    ]
}

fn load(config: &Value) -> Result<Model, ConfigError> {
    config::from_json("config.json", &config.to_string())
}

fn with(base: &Value, key: &str, value: Value) -> Value {
    let mut config = base.clone();
    config[key] = value;
    config
}

#[test]
fn published_configs_are_the_presets() {
    for (name, config) in published() {
        let mut model = load(&config).unwrap();
        let preset = presets::lookup(name).unwrap();
        model.name.clone_from(&preset.name);
        assert_eq!(model, preset);
    }
    assert_eq!(load(&published()[0].1).unwrap().name, "llama-3.1-8b");
}

#[test]
fn llama_without_kv_heads_is_multi_head() {
    let mut config = published()[0].1.clone();
    config.as_object_mut().unwrap().remove("num_key_value_heads");
    let model = load(&config).unwrap();
    assert_eq!(model.attention, Attention::Gqa { kv_heads: 32, head_dim: 128 });
    assert_eq!(model.bytes_per_token(DType::Bf16), Ok(2 * 32 * 32 * 128 * 2));
}

#[test]
fn every_needed_key_is_named_when_missing_or_wrong() {
    for (name, config) in published() {
        let needed: &[&str] = match name {
            "llama-3.1-8b" => &["hidden_size"],
            "qwen2.5-7b" | "mixtral-8x7b" => &["hidden_size", "num_key_value_heads"],
            "qwen3-235b-a22b" => &["head_dim", "num_key_value_heads"],
            "deepseek-v3" => &["kv_lora_rank", "qk_rope_head_dim"],
            _ => &["kv_lora_rank", "qk_rope_head_dim", "index_head_dim"],
        };
        let all = ["num_hidden_layers", "num_attention_heads", "max_position_embeddings"];
        for key in all.iter().chain(needed) {
            for value in [
                None,
                Some(json!(0)),
                Some(json!(-1)),
                Some(json!("8")),
                Some(json!(1.5)),
                Some(json!([])),
                Some(json!(u64::MAX)),
            ] {
                let mut bad = config.clone();
                match &value {
                    Some(value) => bad[*key] = value.clone(),
                    None => drop(bad.as_object_mut().unwrap().remove(*key)),
                }
                let error = load(&bad).unwrap_err().to_string();
                let shown = value.map_or("missing".to_owned(), |v| v.to_string());
                let wanted = format!("config.json: `{key}` is {shown}, expected a whole number from 1 to ");
                assert!(error.starts_with(&wanted), "{name}: {error}");
            }
        }
    }
}

#[test]
fn state_without_a_component_is_refused_by_key() {
    let llama = published()[0].1.clone();
    for (key, value) in [
        ("mamba_d_state", json!(128)),
        ("ssm_cfg", json!({"layer": "Mamba2"})),
        ("linear_conv_kernel_dim", json!(4)),
        ("linear_num_key_heads", json!(16)),
        ("full_attention_interval", json!(4)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("sliding_window", json!(4096)),
        ("attention_chunk_size", json!(8192)),
        ("cross_attention_layers", json!([3, 8])),
        ("is_encoder_decoder", json!(true)),
        ("num_kv_shared_layers", json!(10)),
        ("kv_lora_rank", json!(512)),
        ("index_head_dim", json!(128)),
        ("model_type", json!("mamba2")),
        ("model_type", Value::Null),
    ] {
        let error = load(&with(&llama, key, value.clone())).unwrap_err().to_string();
        let wanted = format!("config.json: `{key}` is {value}, expected ");
        assert!(error.starts_with(&wanted), "{error}");
    }
    for (key, value) in [
        ("add_cross_attention", json!(false)),
        ("cross_attention_hidden_size", Value::Null),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("sliding_window", json!(131_072)),
        ("sliding_window", Value::Null),
    ] {
        assert!(load(&with(&llama, key, value)).is_ok(), "{key}");
    }
}

#[test]
fn sliding_windows_follow_the_family() {
    let qwen = published()[1].1.clone();
    let error = load(&with(&qwen, "use_sliding_window", json!(true))).unwrap_err().to_string();
    assert!(error.contains("`sliding_window` is 4096"), "{error}");
    let mut mistral = with(&published()[3].1, "model_type", json!("mistral"));
    assert!(load(&mistral).is_ok());
    mistral.as_object_mut().unwrap().remove("sliding_window");
    let error = load(&mistral).unwrap_err().to_string();
    assert!(error.contains("`sliding_window` is missing"), "{error}");
}

#[test]
fn heads_must_divide() {
    let llama = published()[0].1.clone();
    let error = load(&with(&llama, "num_key_value_heads", json!(5))).unwrap_err().to_string();
    assert!(error.contains("a divisor of num_attention_heads, 32"), "{error}");
    let error = load(&with(&llama, "hidden_size", json!(4097))).unwrap_err().to_string();
    assert!(error.contains("a multiple of num_attention_heads, 32"), "{error}");
}

#[test]
fn what_is_not_json_has_a_place() {
    let error = config::from_json("dir/config.json", "{\n  \"a\": }").unwrap_err().to_string();
    assert!(error.starts_with("dir/config.json:2:"), "{error}");
    for text in ["", "[]", "3", "\"x\"", &"[".repeat(100_000)] {
        assert!(config::from_json("f", text).is_err());
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["llama", "qwen3", "deepseek_v32", "full_attention"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::from(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Any JSON, and any published config with keys overwritten, is a model or an error.
    #[test]
    fn no_config_panics(
        json in any_json(),
        base in 0_usize..6,
        edits in prop::collection::vec((prop::sample::select(KEYS.to_vec()), any_json()), 0..4),
    ) {
        let _ = load(&json);
        let mut config = published()[base].1.clone();
        for (key, value) in edits {
            config[key] = value;
        }
        if let Ok(model) = load(&config) {
            prop_assert!(model.bytes_per_token(DType::Bf16).is_ok());
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = config::from_json("f", &text);
    }
}

const KEYS: &[&str] = &[
    "model_type",
    "hidden_size",
    "head_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "index_head_dim",
    "index_topk",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "_name_or_path",
    "mamba_d_conv",
];
