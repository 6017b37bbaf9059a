//! `--set a.b.c=value`: one value of the document replaced before it is read.

use serde_json::{Map, Value};

use super::locate::{Segment, show};
use super::yaml;

/// Keys whose value is one of several kinds, each a key of its own: an override into another kind replaces the
/// one that is there.
const ONE_OF: [&[&str]; 5] = [
    &["cluster", "topology"],
    &["policy", "granularity"],
    &["workload", "arrival"],
    &["workload", "synthetic", "prompt"],
    &["workload", "synthetic", "output"],
];

/// Why an override cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Not `path=value`.
    #[error("--set {text}: expected PATH=VALUE, for example --set cluster.prefill.tp=8")]
    Form {
        /// What was written.
        text: String,
    },
    /// The value is not YAML.
    #[error("--set {text}: the value is not YAML: {message}; put quotes around text with special characters")]
    Value {
        /// What was written.
        text: String,
        /// What the YAML reader said.
        message: String,
    },
    /// The path names a list entry that is not there.
    #[error("--set {text}: `{path}` is a list of {len} entries; expected an index below {len} after it")]
    Index {
        /// What was written.
        text: String,
        /// The list.
        path: String,
        /// Its length.
        len: usize,
    },
}

/// One override.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// As written.
    pub text: String,
    /// Where.
    pub path: Vec<String>,
    /// What.
    pub value: Value,
}

impl Override {
    /// Reads `a.b.c=value`. A key with dots in it is put in double quotes.
    pub fn parse(text: &str) -> Result<Self, SetError> {
        let form = || SetError::Form { text: text.to_owned() };
        let mut path = vec![String::new()];
        let mut quoted = false;
        let mut chars = text.char_indices();
        let rest = loop {
            let (at, c) = chars.next().ok_or_else(form)?;
            match c {
                '"' => quoted = !quoted,
                '=' if !quoted => break &text[at + 1..],
                '.' if !quoted => path.push(String::new()),
                c => path.last_mut().ok_or_else(form)?.push(c),
            }
        };
        if path.iter().any(|key| key.trim().is_empty()) {
            return Err(form());
        }
        let path = path.iter().map(|key| key.trim().to_owned()).collect();
        let value = yaml::parse(rest)
            .map_err(|error| SetError::Value { text: text.to_owned(), message: error.message })?;
        Ok(Override { text: text.to_owned(), path, value })
    }

    /// Puts the value into `tree`. Keys that are not there are made; whether they may be there is found
    /// when the tree is read. Returns the path in terms of keys and indices.
    pub fn apply(&self, tree: &mut Value) -> Result<Vec<Segment>, SetError> {
        let mut at = tree;
        let mut done: Vec<Segment> = Vec::new();
        for (depth, key) in self.path.iter().enumerate() {
            at = if let Value::Array(items) = at {
                let len = items.len();
                let index = key.parse::<usize>().ok().filter(|index| *index < len);
                let Some(index) = index else {
                    return Err(SetError::Index { text: self.text.clone(), path: show(&done), len });
                };
                done.push(Segment::Index(index));
                &mut items[index]
            } else {
                done.push(Segment::Key(key.clone()));
                if !at.is_object() {
                    *at = Value::Object(Map::new());
                }
                let Value::Object(map) = at else { return Err(SetError::Form { text: self.text.clone() }) };
                if ONE_OF.iter().any(|kinds| *kinds == &self.path[..depth]) {
                    map.retain(|other, _| other == key);
                }
                map.entry(key.clone()).or_insert(Value::Null)
            };
        }
        *at = self.value.clone();
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set(tree: Value, text: &str) -> Value {
        let mut tree = tree;
        Override::parse(text).unwrap().apply(&mut tree).unwrap();
        tree
    }

    #[test]
    fn scalars_flow_values_indices_and_quoted_keys() {
        assert_eq!(set(json!({"a": {"b": 1}}), "a.b=2"), json!({"a": {"b": 2}}));
        assert_eq!(set(json!({}), "a.b=40GiB"), json!({"a": {"b": "40GiB"}}));
        assert_eq!(set(json!({"a": "x"}), "a={b: [1, 2]}"), json!({"a": {"b": [1, 2]}}));
        assert_eq!(set(json!({"a": [{"b": 1}]}), "a.0.b=2"), json!({"a": [{"b": 2}]}));
        assert_eq!(set(json!({"a": "x"}), "a.b=2"), json!({"a": {"b": 2}}));
        assert_eq!(set(json!({}), "e.\"x.y\"=1"), json!({"e": {"x.y": 1}}));
        assert_eq!(set(json!({}), "a=x=y"), json!({"a": "x=y"}));
    }

    #[test]
    fn errors() {
        assert!(Override::parse("a.b").unwrap_err().to_string().contains("PATH=VALUE"));
        assert!(Override::parse(".b=1").is_err() && Override::parse("=1").is_err());
        assert!(Override::parse("a=[1").unwrap_err().to_string().contains("not YAML"));
        let index = Override::parse("a.3=1").unwrap().apply(&mut json!({"a": [1]})).unwrap_err();
        assert!(index.to_string().contains("list of 1 entries"), "{index}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            if let Ok(set) = Override::parse(&text) {
                let _ = set.apply(&mut json!({"a": [1, {"b": 2}]}));
            }
        }
    }
}
