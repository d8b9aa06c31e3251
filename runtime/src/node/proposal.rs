//! What a node writes into the control topic, for the tests of what is made of it.

use tidemill_proto::v1::ControlEntry;
use tidemill_proto::v1::control_entry::Entry;

/// Nobody's in particular.
pub fn proposal(entry: Entry) -> ControlEntry {
    ControlEntry { entry: Some(entry), ..ControlEntry::default() }
}
