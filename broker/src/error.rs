//! Why a broker cannot start or stop. What clients are told is in the protocol's own codes.

use std::io;
use std::path::PathBuf;

use crate::journal::JournalError;
use crate::log::RecoverError;

/// All ways in which a broker can fail as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not of the form `host:port` or its host is unknown.
    #[error("`{listen}` is not an address to listen on (expected host:port): {source}")]
    Address {
        /// What was configured.
        listen: String,
        /// Why it is not usable.
        source: io::Error,
    },
    /// Another program listens there.
    #[error("{listen} is in use by another program; choose another port, or port 0 for any free one")]
    PortInUse {
        /// What was configured.
        listen: String,
    },
    /// Another broker works on the same directory.
    #[error("{path} is in use by another broker; stop it or choose another data directory")]
    DirectoryInUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory cannot be used.
    #[error("data directory {path}: {source}")]
    Directory {
        /// File or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The metadata journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The log of a partition cannot be opened.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}
