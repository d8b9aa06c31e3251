//! The node's own connections to brokers: synchronous, each used by one thread.
//!
//! | file | what it is |
//! |---|---|
//! | `access` | how brokers are reached and signed in at, from the configuration |
//! | `connection` | one connection: requests and answers |
//! | `frames` | bytes there and back, within a deadline |
//! | `guard` | looks at an answer before it is decoded |
//! | `hang_ups` | brokers that go on ending TLS handshakes, told once |
//! | `metadata` | what every client asks of the cluster |
//! | `sasl` | signing in |

mod access;
mod connection;
mod frames;
mod guard;
mod hang_ups;
pub(super) mod metadata;
mod sasl;

pub(super) use access::{Access, Address};
pub(super) use connection::{
    Connection, ConnectionError, FETCH_BY_ID_VERSION, FETCH_VERSION, FIND_COORDINATOR_VERSION,
    INIT_PRODUCER_ID_VERSION, METADATA_VERSION, PRODUCE_VERSION, TRANSACTION_VERSION,
};
