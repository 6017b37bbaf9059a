//! One of several kinds, by its name (`least-inflight`) or by a map of the name to its parameters (`{least-inflight: {window: 4}}`).
//!
//! A name alone stands for the defaults of all parameters, where there are defaults; else the error says which one is missing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// Reads a kind, for `deserialize_with` of a field whose type is an enum.
pub(super) fn or_map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    from.deserialize_any(NameOrMap(PhantomData))
}

struct NameOrMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NameOrMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name, or a map of one name to its parameters")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
        T::deserialize(Name { name, error: PhantomData })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let value = T::deserialize(MapAccessDeserializer::new(&mut map))?;
        match map.next_key::<String>()? {
            None => Ok(value),
            Some(second) => Err(Error::custom(format_args!("`{second}` is a second name, expected one"))),
        }
    }
}

/// A kind of which the name alone is given.
struct Name<'a, E> {
    name: &'a str,
    error: PhantomData<E>,
}

impl<'de, E: Error> Deserializer<'de> for Name<'_, E> {
    type Error = E;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, 'a, E: Error> EnumAccess<'de> for Name<'a, E> {
    type Error = E;
    type Variant = Parameters<'a, E>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), E> {
        let kind = seed.deserialize(serde::de::value::StrDeserializer::new(self.name))?;
        Ok((kind, Parameters { name: self.name, error: PhantomData }))
    }
}

/// No parameters: each has its default.
struct Parameters<'a, E> {
    name: &'a str,
    error: PhantomData<E>,
}

impl<E: Error> Parameters<'_, E> {
    fn lacks(&self, why: impl fmt::Display) -> E {
        let name = self.name;
        E::custom(format_args!("`{name}` alone says too little, give {{{name}: ..}}: {why}"))
    }
}

impl<'de, E: Error> VariantAccess<'de> for Parameters<'_, E> {
    type Error = E;

    fn unit_variant(self) -> Result<(), E> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, E> {
        seed.deserialize(none()).map_err(|error: E| self.lacks(error))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, E> {
        none().deserialize_any(visitor).map_err(|error: E| self.lacks(error))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, E> {
        none().deserialize_any(visitor).map_err(|error: E| self.lacks(error))
    }
}

/// A map without entries.
fn none<'de, E: Error>() -> MapDeserializer<'de, std::iter::Empty<(&'static str, &'static str)>, E> {
    MapDeserializer::new(std::iter::empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    enum Kind {
        Plain,
        Whole(Parts),
        Half { a: u32 },
        Text(String),
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Parts {
        a: u32,
        b: u32,
    }

    impl Default for Parts {
        fn default() -> Self {
            Parts { a: 3, b: 4 }
        }
    }

    fn read(value: &Value) -> Result<Kind, String> {
        or_map(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_its_defaults() {
        assert_eq!(read(&json!("plain")), Ok(Kind::Plain));
        assert_eq!(read(&json!("whole")), Ok(Kind::Whole(Parts { a: 3, b: 4 })));
        assert_eq!(read(&json!({"whole": {"b": 5}})), Ok(Kind::Whole(Parts { a: 3, b: 5 })));
        assert_eq!(read(&json!({"half": {"a": 5}})), Ok(Kind::Half { a: 5 }));
        assert_eq!(read(&json!({"text": "x"})), Ok(Kind::Text("x".to_owned())));
    }

    #[test]
    fn errors_say_what_is_missing() {
        for (value, said) in [
            (json!("hole"), "unknown variant `hole`, expected one of `plain`, `whole`"),
            (json!("half"), "`half` alone says too little, give {half: ..}: missing field `a`"),
            (json!("text"), "`text` alone says too little, give {text: ..}"),
            (json!({"whole": {"c": 5}}), "unknown field `c`"),
            (json!({"plain": null, "whole": {}}), "`whole` is a second name"),
            (json!({}), "expected"),
            (json!(3), "a name, or a map of one name to its parameters"),
        ] {
            let error = read(&value).unwrap_err();
            assert!(error.contains(said), "{value}: {error}");
        }
    }
}
