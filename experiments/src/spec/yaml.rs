//! YAML text to and from a tree of values. The only place that knows `serde_yaml`.
//!
//! The tree is `serde_json`'s: in it enums are maps with one key (`{poisson: {rate: 8}}`), which is what
//! people write, where `serde_yaml` wants tags (`!poisson`).

use serde::Serialize;
use serde_json::{Map, Number, Value};
use serde_yaml::Value as Yaml;

/// Why a text is not a tree of values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// The line, from 1, where known.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl YamlError {
    fn new(message: impl Into<String>) -> Self {
        YamlError { line: None, message: message.into() }
    }
}

/// Reads a YAML document.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut yaml: Yaml = serde_yaml::from_str(text).map_err(|error| YamlError {
        line: error.location().map(|location| location.line()),
        message: error.to_string(),
    })?;
    yaml.apply_merge().map_err(|error| YamlError::new(error.to_string()))?;
    to_json(yaml)
}

/// Reads a document of a known shape; errors name the key.
pub fn parse_as<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let tree = parse(text)?;
    serde_path_to_error::deserialize(&tree)
        .map_err(|error| YamlError::new(format!("{}: {}", error.path(), error.inner())))
}

/// Writes a YAML document.
pub fn print<T: Serialize>(value: &T) -> Result<String, YamlError> {
    let tree = serde_json::to_value(value).map_err(|error| YamlError::new(error.to_string()))?;
    serde_yaml::to_string(&tree).map_err(|error| YamlError::new(error.to_string()))
}

fn to_json(yaml: Yaml) -> Result<Value, YamlError> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(number) => Value::Number(match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), ..) => value.into(),
            (_, Some(value), _) => value.into(),
            (.., Some(value)) => Number::from_f64(value)
                .ok_or_else(|| YamlError::new(format!("{value} is not a number that can be used")))?,
            _ => return Err(YamlError::new(format!("{number} is not a number that can be used"))),
        }),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let key = match key {
                    Yaml::String(key) => key,
                    Yaml::Number(key) => key.to_string(),
                    key => return Err(YamlError::new(format!("the key {key:?} is not a name"))),
                };
                let value = to_json(value)?;
                if map.insert(key.clone(), value).is_some() {
                    return Err(YamlError::new(format!("the key `{key}` is there twice")));
                }
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let mut map = Map::new();
            map.insert(tag.trim_start_matches('!').to_owned(), to_json(tagged.value)?);
            Value::Object(map)
        }
    })
}
