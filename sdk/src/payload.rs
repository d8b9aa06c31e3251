//! What can be the key or the value of an emitted record.

use std::io::Write;

use serde::Serialize;

use crate::Failure;

/// Bytes to emit. Text and bytes go as they are, numbers as decimal text (for other forms write the
/// bytes yourself: `&n.to_be_bytes()`), [`Json`] as JSON, `None` and [`Null`] as null.
pub trait Payload {
    /// Appends the bytes; answers false for null.
    fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure>;
}

/// A null key or a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Null;

/// Writes `T` as JSON; as `Store<Json<T>>`, keeps it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl Payload for Null {
    fn write(&self, _: &mut Vec<u8>) -> Result<bool, Failure> {
        Ok(false)
    }
}

impl<T: Serialize> Payload for Json<T> {
    fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
        serde_json::to_writer(out, &self.0)
            .map_err(|error| Failure::permanent(format!("cannot be written as JSON: {error}")))?;
        Ok(true)
    }
}

impl<T: Payload + ?Sized> Payload for &T {
    #[inline]
    fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
        (**self).write(out)
    }
}

impl<T: Payload> Payload for Option<T> {
    fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
        self.as_ref().map_or(Ok(false), |payload| payload.write(out))
    }
}

macro_rules! bytes {
    ($($type:ty => $view:ident),*) => {$(
        impl Payload for $type {
            #[inline]
            fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
                out.extend_from_slice(self.$view());
                Ok(true)
            }
        }
    )*};
}
bytes!([u8] => as_ref, Vec<u8> => as_slice, str => as_bytes, String => as_bytes);

impl<const N: usize> Payload for [u8; N] {
    fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
        out.extend_from_slice(self);
        Ok(true)
    }
}

macro_rules! decimal {
    ($($type:ty),*) => {$(
        impl Payload for $type {
            fn write(&self, out: &mut Vec<u8>) -> Result<bool, Failure> {
                write!(out, "{self}").map_err(|error| Failure::permanent(error.to_string()))?;
                Ok(true)
            }
        }
    )*};
}
decimal!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64, bool);
