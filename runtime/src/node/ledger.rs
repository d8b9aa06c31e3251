//! What the stores of one life of a deployment may hold: in which generation, in which forms; and whether rows beside
//! them may lie in its changelog.
//!
//! ```text
//!   deployed with schema 1      holds 1
//!   deployed with schema 2      holds 1, 2      refused unless the manifest says `reads: [1]`
//!   back to schema 1            refused, unless that one says `reads: [2]`
//!   --drop-store                holds nothing; the next generation begins
//! ```
//!
//! A form is held from the moment that a version which writes it is accepted: whether any task came to
//! write it is not asked. A generation never comes back, so that what was dropped stays gone whatever is
//! deployed later.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Problem;
use crate::config::manifest::{Manifest, StoreKind, StoreManifest};
use crate::store::key_name;

/// Of one life, with what its earlier versions left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By name.
    stores: BTreeMap<String, Holding>,
    /// A version of this life had an outbox, or could park records.
    rows: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Holding {
    /// Raised by every drop; part of the name that the store's keys carry.
    generation: u32,
    /// Versions of the form in which values may lie there, and what each is.
    forms: BTreeMap<u32, StoreKind>,
}

impl Ledger {
    /// Every store of which `manifest` would lose or misread the data, and what to do about it.
    pub fn conflicts(&self, manifest: &Manifest, drops: &[String]) -> Vec<Problem> {
        let kept = self.stores.iter().filter(|(name, _)| !drops.contains(name));
        kept.filter_map(|(name, holding)| {
            let store = manifest.stores.iter().find(|store| store.name == *name);
            Some(Problem::at(format!("stores.{name}"), holding.conflict(name, store)?))
        })
        .collect()
    }

    /// Drops of stores that neither the life nor the manifest has.
    pub fn unknown_drops(&self, manifest: &Manifest, drops: &[String]) -> Vec<Problem> {
        let declared = manifest.stores.iter().map(|store| store.name.as_str());
        let known: BTreeSet<&str> = self.stores.keys().map(String::as_str).chain(declared).collect();
        let unknown = drops.iter().filter(|name| !known.contains(name.as_str()));
        let names: Vec<&str> = known.iter().copied().collect();
        let message = |name: &String| match names.as_slice() {
            [] => format!("there is no store {name} to drop; the deployment has none"),
            names => format!("there is no store {name} to drop; there are {}", names.join(", ")),
        };
        unknown.map(|name| Problem::at("drop_stores", message(name))).collect()
    }

    /// A version with that manifest is accepted, and with it the end of what it drops.
    pub fn accept(&mut self, manifest: Option<&Manifest>, drops: &[String]) {
        for name in drops {
            let Some(holding) = self.stores.get_mut(name).filter(|holding| !holding.forms.is_empty()) else {
                continue; // Nothing has been there since the last drop.
            };
            *holding = Holding { generation: holding.generation.saturating_add(1), forms: BTreeMap::new() };
        }
        for store in manifest.iter().flat_map(|manifest| &manifest.stores) {
            let holding = self.stores.entry(store.name.clone()).or_default();
            holding.forms.entry(store.schema).or_insert(store.kind);
        }
    }

    /// A version is accepted that may leave rows of an outbox, or parked records, beside its stores. They stay when a
    /// later one makes none.
    pub fn accept_rows(&mut self, leaves_rows: bool) {
        self.rows |= leaves_rows;
    }

    /// Rows of an outbox, or parked records, may lie in the changelog. Whether they have been delivered or handled since
    /// is not asked.
    pub fn may_hold_rows(&self) -> bool {
        self.rows
    }

    pub fn generation(&self, store: &str) -> u32 {
        self.stores.get(store).map_or(0, |holding| holding.generation)
    }

    /// Versions of the form that the store's values may have, ascending.
    pub fn holds(&self, store: &str) -> Vec<u32> {
        self.stores.get(store).map(|holding| holding.forms.keys().copied().collect()).unwrap_or_default()
    }

    /// As keys name them: the generations of all stores that are no more.
    pub fn dropped(&self) -> impl Iterator<Item = String> {
        self.stores
            .iter()
            .flat_map(|(name, holding)| (0..holding.generation).map(|generation| key_name(name, generation)))
    }
}

impl Holding {
    /// Why `store`, the new version's declaration of it, cannot go on with what is held.
    fn conflict(&self, name: &str, store: Option<&StoreManifest>) -> Option<String> {
        if self.forms.is_empty() {
            return None;
        }
        let held: Vec<String> = self.forms.keys().map(u32::to_string).collect();
        let held = held.join(", ");
        let Some(store) = store else {
            return Some(format!(
                "holds values of schema {held}, and this version has no such store: declare it in the module, or give its data up \
                 with --drop-store {name}"
            ));
        };
        let unread: Vec<String> =
            self.forms.keys().filter(|&&form| !store.can_read(form)).map(u32::to_string).collect();
        if !unread.is_empty() {
            let reads = unread.join(", ");
            return Some(format!(
                "holds values of schema {held}, and this version has schema {} and does not read {reads}: let the handler read the \
                 other form and declare `reads: [{reads}]`, deploy a version that does, or give the data up with --drop-store {name}",
                store.schema
            ));
        }
        let former = self.forms.get(&store.schema).filter(|&&former| former != store.kind)?;
        Some(format!(
            "holds values of schema {held}, of which {} is {}, and this version says that schema {} is {}: give the new form a \
             schema version of its own (`schema: {}, reads: [{held}]` if the handler reads both), or give the data up with \
             --drop-store {name}",
            store.schema,
            former.as_str(),
            store.schema,
            store.kind.as_str(),
            self.forms.keys().max().map_or(2, |highest| highest.saturating_add(1)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, schema: u32, reads: &[u32], kind: StoreKind) -> StoreManifest {
        let (prefetch, ordered) = (false, false);
        StoreManifest { name: name.into(), kind, schema, reads: reads.to_vec(), prefetch, ordered }
    }

    fn manifest(stores: &[StoreManifest]) -> Manifest {
        Manifest {
            inputs: vec!["in".into()],
            outputs: Vec::new(),
            stores: stores.to_vec(),
            wants_headers: false,
        }
    }

    fn ledger(manifests: &[&Manifest]) -> Ledger {
        let mut ledger = Ledger::default();
        manifests.iter().for_each(|manifest| ledger.accept(Some(manifest), &[]));
        ledger
    }

    #[test]
    fn a_version_reads_every_form_that_may_lie_there_or_is_refused_with_both_versions_and_the_fixes() {
        let first = manifest(&[store("counts", 1, &[], StoreKind::U64)]);
        let second = manifest(&[store("counts", 2, &[1], StoreKind::Json)]);
        let held = ledger(&[&first]);
        assert_eq!(held.conflicts(&first, &[]), []);
        assert_eq!(held.conflicts(&second, &[]), []);
        let blind = manifest(&[store("counts", 2, &[], StoreKind::Json)]);
        let said = held.conflicts(&blind, &[])[0].to_string();
        for part in ["stores.counts", "schema 1", "schema 2", "reads: [1]", "--drop-store counts"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // What the second may have written the first cannot read; nor can a third that forgot the first.
        let both = ledger(&[&first, &second]);
        assert_eq!(both.holds("counts"), [1, 2]);
        assert_eq!(both.conflicts(&first, &[]).len(), 1);
        assert_eq!(both.conflicts(&manifest(&[store("counts", 3, &[2], StoreKind::Json)]), &[]).len(), 1);
        assert_eq!(both.conflicts(&manifest(&[store("counts", 3, &[1, 2], StoreKind::Json)]), &[]), []);
        // One that knew of the second beforehand.
        let prepared = manifest(&[store("counts", 1, &[2], StoreKind::U64)]);
        assert_eq!(both.conflicts(&prepared, &[]), []);
    }

    #[test]
    fn a_store_that_is_gone_or_of_another_type_is_refused_all_at_once() {
        let held =
            ledger(&[&manifest(&[store("a", 1, &[], StoreKind::U64), store("b", 1, &[], StoreKind::Utf8)])]);
        let next = manifest(&[store("b", 1, &[], StoreKind::Json)]);
        let said: Vec<String> = held.conflicts(&next, &[]).iter().map(Problem::to_string).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("no such store"), "{said:?}");
        assert!(said[1].contains("1 is utf8") && said[1].contains("schema 1 is json"), "{said:?}");
        assert_eq!(held.conflicts(&next, &["a".into(), "b".into()]), []);
    }

    #[test]
    fn what_is_dropped_begins_anew_in_another_generation_and_never_comes_back() {
        let first = manifest(&[store("a", 1, &[], StoreKind::U64)]);
        let mut held = ledger(&[&first]);
        let other = manifest(&[store("a", 2, &[], StoreKind::Json)]);
        held.accept(Some(&other), &["a".into()]);
        assert_eq!((held.generation("a"), held.holds("a")), (1, vec![2]));
        assert_eq!(held.dropped().collect::<Vec<_>>(), ["a"]);
        held.accept(Some(&manifest(&[])), &["a".into()]);
        assert_eq!(held.conflicts(&first, &[]), [], "it is empty");
        // Nothing has been written since, so there is nothing to drop again.
        held.accept(Some(&manifest(&[])), &["a".into()]);
        held.accept(Some(&first), &[]);
        assert_eq!((held.generation("a"), held.holds("a")), (2, vec![1]));
        assert_eq!(held.dropped().collect::<Vec<_>>(), ["a", "a#1"]);
    }

    #[test]
    fn a_drop_of_what_nobody_knows_names_what_there_is() {
        let held = ledger(&[&manifest(&[store("a", 1, &[], StoreKind::U64)])]);
        let said = held.unknown_drops(&manifest(&[]), &["a".into(), "b".into()]);
        assert_eq!(said.len(), 1);
        assert!(said[0].message.contains("no store b to drop; there are a"), "{said:?}");
    }
}
