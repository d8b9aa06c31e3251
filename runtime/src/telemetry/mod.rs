//! Metrics and logs, that of audits included. The only place that names prometheus-client.
//!
//! Data-plane threads own plain counters ([`TaskMetrics`], [`WorkerMetrics`]) and add to them once a
//! batch, relaxed and uncontended; a scrape reads them all through one table of names ([`table`]).
//! No lock is taken on the way of a record.

pub mod audit;
mod board;
mod cells;
mod handler_logs;
mod lag;
pub mod logging;
mod spent;
pub mod table;

pub use board::{CONTENT_TYPE, Telemetry};
pub use cells::{
    BreakerState, Counter, DestinationMetrics, Gauge, Histogram, NodeMetrics, OutboxMetrics, TaskMetrics,
    TaskState, WorkerMetrics,
};
pub use handler_logs::{HandlerLogs, Level, Line, LogBounds, LogRing, Since};
pub use lag::{InputLag, PartitionLag};
pub use spent::{Activity, Parts, Spent};
