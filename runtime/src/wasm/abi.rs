//! The types of `tidemill:handler`, as wasmtime moves them. Field names and order are those of
//! `proto/wit/handler.wit`; wasmtime compares them when a module is linked.
//!
//! Written out rather than generated, so that columns are lowered from borrowed slices and lifted
//! into the vectors that the rest of the node keeps: one copy each way.

use wasmtime::component::{ComponentType, Lift, Lower};

use crate::record;

/// The package and version that every import and export belongs to.
pub const PACKAGE: &str = "tidemill:handler";
pub const VERSION: &str = "0.1.0";

#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct ColumnRef<'a> {
    pub bytes: &'a [u8],
    pub lengths: &'a [i32],
}

impl<'a> From<&'a record::Column> for ColumnRef<'a> {
    fn from(column: &'a record::Column) -> ColumnRef<'a> {
        ColumnRef { bytes: column.bytes(), lengths: column.lengths() }
    }
}

#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Order {
    #[component(name = "key")]
    Key,
    #[component(name = "all")]
    All,
    #[component(name = "none")]
    None,
}

#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct RecordsRef<'a> {
    pub input: &'a [u16],
    pub partition: i32,
    pub offset: &'a [i64],
    pub timestamp: &'a [i64],
    pub key: ColumnRef<'a>,
    pub value: ColumnRef<'a>,
    pub headers: ColumnRef<'a>,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, ComponentType, Lower)]
#[component(record)]
pub struct PrefetchedRef<'a> {
    pub store: &'a [u16],
    pub key: ColumnRef<'a>,
    pub value: ColumnRef<'a>,
}

/// A column by value. Unchecked when it comes from a guest.
#[derive(Debug, ComponentType, Lift, Lower)]
#[component(record)]
pub struct RawColumn {
    pub bytes: Vec<u8>,
    pub lengths: Vec<i32>,
}

impl From<record::Column> for RawColumn {
    fn from(column: record::Column) -> RawColumn {
        let (bytes, lengths) = column.into_parts();
        RawColumn { bytes, lengths }
    }
}

#[derive(Debug, ComponentType, Lower)]
#[component(record)]
pub struct RawPage {
    pub key: RawColumn,
    pub value: RawColumn,
    pub more: bool,
}

#[derive(Debug, ComponentType, Lift)]
#[component(record)]
pub struct RawEmissions {
    pub source: Vec<u32>,
    pub output: Vec<u16>,
    pub partition: Vec<i32>,
    pub timestamp: Vec<i64>,
    pub key: RawColumn,
    pub value: RawColumn,
    pub headers: RawColumn,
}

#[derive(Debug, ComponentType, Lift)]
#[component(record)]
pub struct RawWrites {
    pub source: Vec<u32>,
    pub store: Vec<u16>,
    pub key: RawColumn,
    pub value: RawColumn,
}

#[derive(Debug, ComponentType, Lift)]
#[component(record)]
pub struct RawEffects {
    pub emit: RawEmissions,
    pub write: RawWrites,
    pub status: Vec<u8>,
    pub reason: RawColumn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "wasmtime makes the values, from the guest's numbers")]
pub enum Level {
    #[component(name = "error")]
    Error,
    #[component(name = "warn")]
    Warn,
    #[component(name = "info")]
    Info,
    #[component(name = "debug")]
    Debug,
}
