//! Typed stores: the fields of a handler that hold its state.

use std::convert::Infallible;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::tidemill::handler::types::Page;
use crate::column::Column;
use crate::{Context, Failure, Json};

/// Rows asked for in one page of a scan.
const PAGE_ROWS: u32 = 1_000;

/// A key-value store of the deployment; a task sees its own slice of it.
///
/// `V` is `u64`, `i64`, `f64`, `String`, [`Json<T>`] or [`Bytes`]. The value is only a name for the
/// store: what it holds lives in the node, is committed with the records that wrote it, and is taken
/// back when their record fails.
pub struct Store<V> {
    index: u16,
    value: PhantomData<fn() -> V>,
}

/// The value type of a store that keeps bytes as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes;

/// How a store's values are encoded, for people who look at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Bytes,
    U64,
    I64,
    F64,
    Utf8,
    Json,
}

/// The type of a store's values.
pub trait Value {
    /// What `get` returns.
    type Owned;
    /// What `put` takes.
    type Given: ?Sized;
    const KIND: Kind;
    fn decode(bytes: &[u8]) -> Result<Self::Owned, Failure>;
    fn encode(value: &Self::Given, out: &mut Vec<u8>) -> Result<(), Failure>;
}

impl<V: Value> Store<V> {
    pub(crate) fn at(index: u16) -> Store<V> {
        Store { index, value: PhantomData }
    }

    /// The value of `key`, none when there is none. A value that does not decode as `V` fails as permanent.
    #[inline]
    pub fn get(&self, ctx: &mut Context, key: impl AsRef<[u8]>) -> Result<Option<V::Owned>, Failure> {
        let (state, host) = ctx.state_and_host();
        state.get(host, self.index, key.as_ref()).map(V::decode).transpose()
    }

    /// Sets the value of `key`. A value that cannot be encoded fails the record when the handler returns.
    #[inline]
    pub fn put(&self, ctx: &mut Context, key: impl AsRef<[u8]>, value: &V::Given) {
        let (state, _) = ctx.state_and_host();
        let put = state.put(self.index, key.as_ref(), |out| V::encode(value, out).map(|()| true));
        if let Err(failure) = put {
            ctx.fail_later(failure);
        }
    }

    /// Removes `key`; nothing happens when it is not there.
    pub fn delete(&self, ctx: &mut Context, key: impl AsRef<[u8]>) {
        let (state, _) = ctx.state_and_host();
        let Ok(()) = state.put(self.index, key.as_ref(), |_| Ok::<_, Infallible>(false));
    }

    /// Keys that begin with `prefix`, in byte order. Declare the store `ordered`.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Scan<V> {
        let prefix = prefix.as_ref();
        Scan::new(self.index, prefix.to_vec(), after_prefix(prefix))
    }

    /// Keys from `start` (inclusive) to `end` (exclusive; none = to the last), in byte order.
    pub fn range(&self, start: impl AsRef<[u8]>, end: Option<&[u8]>) -> Scan<V> {
        Scan::new(self.index, start.as_ref().to_vec(), end.map(<[u8]>::to_vec))
    }
}

/// The first key after all that begin with `prefix`; none when there is no such key.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// A scan in progress, fetched a page at a time.
///
/// It borrows nothing, so that the loop's body can use the context:
/// `while let Some((key, value)) = scan.next(ctx)? { .. }`. A write made inside the loop is seen by
/// the pages fetched after it.
pub struct Scan<V> {
    store: u16,
    /// Where the next page begins; the page in hand ends before it.
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    page: Page,
    row: usize,
    key_at: usize,
    value_at: usize,
    value: PhantomData<fn() -> V>,
}

impl<V: Value> Scan<V> {
    fn new(store: u16, start: Vec<u8>, end: Option<Vec<u8>>) -> Scan<V> {
        let page = Page { key: Column::new(), value: Column::new(), more: true };
        Scan { store, start, end, page, row: 0, key_at: 0, value_at: 0, value: PhantomData }
    }

    /// The next key and its value; none at the end.
    #[allow(clippy::should_implement_trait, clippy::type_complexity)] // It lends the key, and needs the context.
    pub fn next(&mut self, ctx: &mut Context) -> Result<Option<(&[u8], V::Owned)>, Failure> {
        while self.row == self.page.key.lengths.len() {
            if !self.page.more {
                return Ok(None);
            }
            self.fetch(ctx);
        }
        let key_len = self.page.key.lengths[self.row].max(0) as usize;
        let value_len = self.page.value.lengths[self.row].max(0) as usize;
        let key = &self.page.key.bytes[self.key_at..][..key_len];
        let value = &self.page.value.bytes[self.value_at..][..value_len];
        self.row += 1;
        self.key_at += key_len;
        self.value_at += value_len;
        Ok(Some((key, V::decode(value)?)))
    }

    fn fetch(&mut self, ctx: &mut Context) {
        let (state, host) = ctx.state_and_host();
        self.page = state.scan(host, self.store, &self.start, self.end.as_deref(), PAGE_ROWS);
        (self.row, self.key_at, self.value_at) = (0, 0, 0);
        match self.page.key.lengths.last() {
            Some(&len) => {
                let last = self.page.key.bytes.len() - len.max(0) as usize;
                self.start.clear();
                self.start.extend_from_slice(&self.page.key.bytes[last..]);
                self.start.push(0); // The smallest key after it.
            }
            None => self.page.more = false,
        }
    }
}

macro_rules! number {
    ($type:ty, $kind:ident) => {
        impl Value for $type {
            type Owned = $type;
            type Given = $type;
            const KIND: Kind = Kind::$kind;

            #[inline]
            fn decode(bytes: &[u8]) -> Result<$type, Failure> {
                let bytes = bytes.try_into().map_err(|_| {
                    let len = bytes.len();
                    Failure::permanent(format!("the state has {len} bytes where {} has 8", stringify!($type)))
                })?;
                Ok(<$type>::from_le_bytes(bytes))
            }

            #[inline]
            fn encode(value: &$type, out: &mut Vec<u8>) -> Result<(), Failure> {
                out.extend_from_slice(&value.to_le_bytes());
                Ok(())
            }
        }
    };
}
number!(u64, U64);
number!(i64, I64);
number!(f64, F64);

impl Value for String {
    type Owned = String;
    type Given = str;
    const KIND: Kind = Kind::Utf8;

    fn decode(bytes: &[u8]) -> Result<String, Failure> {
        String::from_utf8(bytes.to_vec())
            .map_err(|error| Failure::permanent(format!("the state is not UTF-8: {error}")))
    }

    fn encode(value: &str, out: &mut Vec<u8>) -> Result<(), Failure> {
        out.extend_from_slice(value.as_bytes());
        Ok(())
    }
}

impl Value for Bytes {
    type Owned = Vec<u8>;
    type Given = [u8];
    const KIND: Kind = Kind::Bytes;

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(bytes.to_vec())
    }

    fn encode(value: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        out.extend_from_slice(value);
        Ok(())
    }
}

impl<T: Serialize + DeserializeOwned> Value for Json<T> {
    type Owned = T;
    type Given = T;
    const KIND: Kind = Kind::Json;

    fn decode(bytes: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(bytes)
            .map_err(|error| Failure::permanent(format!("the state is not the JSON expected: {error}")))
    }

    fn encode(value: &T, out: &mut Vec<u8>) -> Result<(), Failure> {
        serde_json::to_writer(out, value)
            .map_err(|error| Failure::permanent(format!("the state cannot be written as JSON: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::after_prefix;

    #[test]
    fn a_prefix_ends_before_the_next_larger_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }
}
