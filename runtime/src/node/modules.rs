//! Modules by digest: in `_<fleet>.modules` as chunks, and in a directory of this node as files.
//!
//! Layout of the topic (in Kafka since 0.1): key `<sha256 hex>/<chunk index>/<chunks>`, value the
//! chunk. A module uploaded twice writes the same keys, so compaction folds it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::kafka::topic_log::{TopicReader, TopicWriter};
use crate::ports::SourceError;

/// Below every broker's default message limit of 1 MiB.
const CHUNK_BYTES: usize = 512 << 10;
const READ_WAIT: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    #[error("module {digest} is not in the fleet's modules topic; deploy it again")]
    Missing { digest: String },
    #[error("modules topic: {0}")]
    Kafka(#[from] SourceError),
    #[error("{path}: {reason}")]
    Disk { path: PathBuf, reason: io::Error },
}

/// SHA-256, lower-case hexadecimal.
pub fn digest(module: &[u8]) -> String {
    Sha256::digest(module).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a module, chunk by chunk; it can be loaded once this has returned.
pub fn publish(writer: &mut TopicWriter, module: &[u8]) -> Result<String, ModuleError> {
    let digest = digest(module);
    let chunks = module.len().div_ceil(CHUNK_BYTES);
    for (index, chunk) in module.chunks(CHUNK_BYTES).enumerate() {
        let key = format!("{digest}/{index}/{chunks}");
        writer.append(Some(key.as_bytes()), Some(chunk))?;
    }
    Ok(digest)
}

/// The files of a node's modules.
pub struct ModuleDir {
    dir: PathBuf,
}

impl ModuleDir {
    pub fn open(dir: &Path) -> Result<ModuleDir, ModuleError> {
        std::fs::create_dir_all(dir).map_err(|reason| disk(dir, reason))?;
        Ok(ModuleDir { dir: dir.to_owned() })
    }

    /// A module, from disk or else from the topic.
    pub fn load(
        &self,
        digest: &str,
        topic: impl FnOnce() -> Result<TopicReader, SourceError>,
    ) -> Result<Vec<u8>, ModuleError> {
        if let Some(module) = self.from_disk(digest)? {
            return Ok(module);
        }
        let module = from_topic(topic()?, digest)?;
        self.keep(digest, &module)?;
        Ok(module)
    }

    /// Keeps a copy; a crash half-way leaves no file that looks whole.
    pub fn keep(&self, digest: &str, module: &[u8]) -> Result<(), ModuleError> {
        let path = self.path(digest);
        let partial = path.with_extension("partial");
        std::fs::write(&partial, module).map_err(|reason| disk(&partial, reason))?;
        std::fs::rename(&partial, &path).map_err(|reason| disk(&path, reason))
    }

    /// A file whose bytes do not have their name's digest is as good as none.
    fn from_disk(&self, wanted: &str) -> Result<Option<Vec<u8>>, ModuleError> {
        let path = self.path(wanted);
        match std::fs::read(&path) {
            Ok(module) if digest(&module) == wanted => Ok(Some(module)),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "module file is damaged; fetching it again");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(disk(&path, reason)),
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }
}

fn from_topic(mut reader: TopicReader, wanted: &str) -> Result<Vec<u8>, ModuleError> {
    let end = reader.end()?;
    let mut chunks = BTreeMap::new();
    let mut total = None;
    while reader.position() < end {
        for record in reader.take(READ_WAIT)? {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            let mut parts = key.split('/');
            let (Some(name), Some(index), Some(count)) = (parts.next(), parts.next(), parts.next()) else { continue };
            if name != wanted {
                continue;
            }
            if let (Ok(index), Ok(count), Some(chunk)) = (index.parse::<usize>(), count.parse::<usize>(), record.value) {
                chunks.insert(index, chunk);
                total = Some(count);
            }
        }
    }
    let module: Vec<u8> = chunks.into_values().flatten().collect();
    if total.is_some() && digest(&module) == wanted {
        return Ok(module);
    }
    Err(ModuleError::Missing { digest: wanted.to_owned() })
}

fn disk(path: &Path, reason: io::Error) -> ModuleError {
    ModuleError::Disk { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_module_file_is_not_trusted() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let modules = ModuleDir::open(dir.path()).expect("opens");
        let name = digest(b"module");
        modules.keep(&name, b"module").expect("keeps");
        assert_eq!(modules.from_disk(&name).expect("reads"), Some(b"module".to_vec()));
        modules.keep(&name, b"modulf").expect("keeps");
        assert_eq!(modules.from_disk(&name).expect("reads"), None);
    }
}
