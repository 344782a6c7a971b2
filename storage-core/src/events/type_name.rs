//! The name of an event's type: the variant of an `enum`, as serde writes it.

use serde::Serialize;
use serde::ser::{Impossible, Serializer};
use serde_json::Value;

use crate::error::{Error, Result};

/// Returns the name of the variant that `event` is, as serde writes it, `rename` and the like
/// included.
///
/// For a value that serde writes as an object with the variant's name in a field `type`
/// (`#[serde(tag = "type")]`), that one.
///
/// # Errors
/// `InvalidArgument` with the detail `field` if it is no such value: a struct, a number, an
/// untagged `enum`.
///
/// ```
/// use serde::Serialize;
/// use storage_core::events::event_type_name;
///
/// #[derive(Serialize)]
/// enum OrchestrationEvent {
///     Started,
///     Renamed { title: String },
/// }
///
/// assert_eq!(event_type_name(&OrchestrationEvent::Started)?, "Started");
/// let renamed = OrchestrationEvent::Renamed { title: "Atlas".into() };
/// assert_eq!(event_type_name(&renamed)?, "Renamed");
/// # Ok::<(), storage_core::Error>(())
/// ```
pub fn event_type_name<T: Serialize + ?Sized>(event: &T) -> Result<String> {
    if let Err(Found::Variant(name)) = event.serialize(Variant) {
        return Ok(name.to_owned());
    }
    match serde_json::to_value(event) {
        Ok(Value::Object(mut fields)) => match fields.remove("type") {
            Some(Value::String(name)) => Ok(name),
            _ => Err(nameless()),
        },
        _ => Err(nameless()),
    }
}

fn nameless() -> Error {
    Error::invalid("the event is no variant of an enum, and has no field `type`")
        .with_context("field", "event_type")
}

/// Looks at the first thing that a value says about itself, and goes no further.
struct Variant;

/// What it was; an error in the eyes of serde, because nothing is written.
#[derive(Debug)]
enum Found {
    Variant(&'static str),
    Other,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not written")
    }
}

impl std::error::Error for Found {}

impl serde::ser::Error for Found {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

macro_rules! others {
    ($($method:ident($($of:ty),*) -> $ok:ty;)+) => {$(
        fn $method(self, $(_: $of),*) -> std::result::Result<$ok, Found> {
            Err(Found::Other)
        }
    )+};
}

type Never = Impossible<(), Found>;

impl Serializer for Variant {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> std::result::Result<(), Found> {
        Err(Found::Variant(variant))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: &T,
    ) -> std::result::Result<(), Found> {
        Err(Found::Variant(variant))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> std::result::Result<Never, Found> {
        Err(Found::Variant(variant))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> std::result::Result<Never, Found> {
        Err(Found::Variant(variant))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> std::result::Result<(), Found> {
        Err(Found::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> std::result::Result<(), Found> {
        value.serialize(self)
    }

    others! {
        serialize_bool(bool) -> ();
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_i32(i32) -> ();
        serialize_i64(i64) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_f32(f32) -> ();
        serialize_f64(f64) -> ();
        serialize_char(char) -> ();
        serialize_str(&str) -> ();
        serialize_bytes(&[u8]) -> ();
        serialize_none() -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_seq(Option<usize>) -> Never;
        serialize_tuple(usize) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct(&'static str, usize) -> Never;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Plain {
        Unit,
        One(u32),
        Two(u32, u32),
        WithFields { n: u32 },
    }

    #[derive(Serialize)]
    #[serde(tag = "type")]
    enum Tagged {
        Opened { n: u32 },
    }

    #[derive(Serialize)]
    struct Wrapped(Plain);

    #[derive(Serialize)]
    struct NoEvent {
        n: u32,
    }

    #[test]
    fn variants_have_their_names_and_nothing_else_has() {
        let name = |event: &Plain| event_type_name(event).unwrap();
        assert_eq!(name(&Plain::Unit), "unit");
        assert_eq!(name(&Plain::One(1)), "one");
        assert_eq!(name(&Plain::Two(1, 2)), "two");
        assert_eq!(name(&Plain::WithFields { n: 1 }), "with_fields");
        assert_eq!(event_type_name(&Tagged::Opened { n: 1 }).unwrap(), "Opened");
        assert_eq!(event_type_name(&Wrapped(Plain::Unit)).unwrap(), "unit");
        let refused = [
            event_type_name(&NoEvent { n: 1 }).unwrap_err(),
            event_type_name("text").unwrap_err(),
            event_type_name(&Some(1)).unwrap_err(),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert_eq!(error.context("field"), Some("event_type"));
        }
    }
}
