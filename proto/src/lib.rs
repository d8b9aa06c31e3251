//! The wire contracts of tidemill: its gRPC services, and what it writes into Kafka about itself.
//! The handler ABI is beside them, in `wit/`.

/// `tidemill.v1`, generated from `tidemill/v1/*.proto`.
pub mod v1 {
    #![allow(clippy::all)]
    tonic::include_proto!("tidemill.v1");

    /// Descriptors of every service, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("tidemill");
}

/// Details of errors, as clients of every language know them.
pub mod rpc {
    #![allow(clippy::all)]
    tonic::include_proto!("google.rpc");

    pub use prost_types::Any;
}

/// The handler ABI, as WIT text.
pub const HANDLER_WIT: &str = include_str!("../wit/handler.wit");
