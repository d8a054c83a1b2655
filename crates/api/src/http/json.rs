//! Bodies in JSON, read as what they say and nothing else.
//!
//! serde reads a struct from an array, too, field by field; an array that was
//! meant for something else must not be taken for an object. And of a key that is
//! given twice one parser takes the first value and another the last (RFC 8259
//! section 4), so that it is refused at every depth.

use std::fmt;

use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Error, Map, Number, Value};

/// Reads a body.
///
/// # Errors
///
/// Its [`classify`](Error::classify) tells what is no JSON from what has another shape.
pub(super) fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let Document(value) = serde_json::from_slice(body)?;
    T::deserialize(Document(value))
}

/// A value with every key once, of which structs are read from objects only.
struct Document(Value);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Whatever)
    }
}

/// Takes every value.
struct Whatever;

impl<'de> Visitor<'de> for Whatever {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Document, E> {
        Ok(Document(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Document, E> {
        Ok(Document(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Document, E> {
        Ok(Document(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Document, E> {
        Ok(Document(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Document, E> {
        Ok(Document(text.into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Document, E> {
        Ok(Document(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Document, A::Error> {
        let mut values = Vec::new();
        while let Some(Document(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Document(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Document, A::Error> {
        let mut values = Map::new();
        while let Some((key, Document(value))) = object.next_entry::<String, _>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} is given twice")));
            }
            values.insert(key, value);
        }
        Ok(Document(Value::Object(values)))
    }
}

impl<'de> Deserializer<'de> for Document {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let unexpected = |found: Unexpected<'_>| Err(Error::invalid_type(found, &"an object"));
        match self.0 {
            Value::Object(object) => {
                let entries = object.into_iter().map(|(key, value)| (key, Self(value)));
                visitor.visit_map(MapDeserializer::new(entries))
            }
            Value::Array(_) => unexpected(Unexpected::Seq),
            Value::Bool(value) => unexpected(Unexpected::Bool(value)),
            Value::Null => unexpected(Unexpected::Unit),
            Value::Number(_) => unexpected(Unexpected::Other("number")),
            Value::String(text) => unexpected(Unexpected::Str(&text)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Document {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        text: Option<String>,
        inner: Option<Inner>,
        #[serde(default)]
        map: Map<String, Value>,
        #[serde(flatten)]
        rest: Map<String, Value>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        number: Option<u8>,
    }

    fn read(body: &str) -> Result<Outer, String> {
        from_slice(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_read_as_what_they_say() {
        let body = r#"{"text": "é\u0000", "inner": {"number": 7}, "map": {"a": [1, {"b": null}]}, "x": 1e400}"#;
        assert!(read(body).is_err(), "a number that none can hold");
        let read = read(&body.replace("1e400", "-1.5")).expect("an object");
        assert_eq!(read.text.as_deref(), Some("é\0"));
        assert_eq!(read.inner, Some(Inner { number: Some(7) }));
        assert_eq!(Value::Object(read.map), json!({"a": [1, {"b": null}]}));
        assert_eq!(Value::Object(read.rest), json!({"x": -1.5}));
    }

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        let object = "invalid type: sequence, expected an object";
        for body in ["[]", r#"["text", {"number": 7}, {}]"#, r#"{"inner": [7]}"#, r#"{"map": []}"#] {
            assert_eq!(read(body).expect_err(body), object, "{body}");
        }
        for body in ["null", "7", "\"text\"", r#"{"inner": "text"}"#, r#"{"text": []}"#, r#"{"inner": {"number": []}}"#]
        {
            assert!(read(body).is_err(), "{body}");
        }
    }

    #[test]
    fn a_key_that_is_given_twice_is_refused_at_any_depth() {
        for body in [
            r#"{"text": "a", "text": "a"}"#,
            r#"{"text": "a", "te\u0078t": "b"}"#,
            r#"{"map": {"a": {"b": 1, "b": 2}}}"#,
            r#"{"x": [{"b": 1, "b": 1}]}"#,
        ] {
            let error = read(body).expect_err(body);
            assert!(error.contains("is given twice at line 1"), "{error}");
        }
    }
}
