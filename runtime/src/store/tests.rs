//! Stores on a real disk and in memory.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::manifest::{StoreKind, StoreManifest};
use crate::effects::Writes;
use crate::record::{Column, Offset};

fn identity() -> Identity {
    Identity { cluster_id: "c".into(), incarnation: "i".into(), changelog_topic_id: "t".into() }
}

fn stores() -> Arc<Stores> {
    let store = |name: &str, prefetch, ordered| StoreManifest {
        name: name.into(),
        kind: StoreKind::Bytes,
        schema: 1,
        reads: Vec::new(),
        prefetch,
        ordered,
    };
    Arc::new(Stores::new(&[store("plain", true, false), store("ordered", false, true)]).unwrap())
}

fn key(store: &str, key: &str) -> Vec<u8> {
    [&keys::state_prefix(store), key.as_bytes()].concat()
}

fn progress(next: u64) -> Progress {
    Progress {
        changelog_next: Offset(next),
        changelog_ms: next as i64,
        inbox_next: Offset(0),
        inbox_ids: 0,
        closed: Some((next, 1)),
    }
}

fn write(store: &mut Store, rows: &[(&str, Option<&str>)], next: u64) {
    let rows: Vec<_> = rows.iter().map(|&(name, value)| (key("plain", name), value)).collect();
    let rows = rows.iter().map(|(key, value)| (key.as_slice(), value.map(str::as_bytes)));
    store.write(rows, progress(next)).unwrap();
}

fn read(reader: &StoreReader, key: &str) -> Option<Vec<u8>> {
    reader.snapshot(|snapshot| snapshot.get("plain", key.as_bytes())).unwrap()
}

fn ready(opening: Opening) -> Store {
    match opening {
        Opening::Ready(store) => *store,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_closed_is_found_again_and_what_is_dropped_unflushed_is_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("0");
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    assert!(matches!(Store::open(&budget, &dir, &identity()).unwrap(), Opening::Missing));

    let mut store = Store::create(&budget, &dir, &identity()).unwrap();
    write(&mut store, &[("a", Some("1"))], 5);
    store.close().unwrap();

    let mut store = ready(Store::open(&budget, &dir, &identity()).unwrap());
    assert_eq!((store.progress(), read(&store.reader(), "a")), (progress(5), Some(b"1".to_vec())));
    write(&mut store, &[("a", None), ("b", Some("2"))], 7);
    drop(store);

    let store = ready(Store::open(&budget, &dir, &identity()).unwrap());
    assert_eq!(store.progress(), progress(5), "progress goes back together with the values");
    assert_eq!((read(&store.reader(), "a"), read(&store.reader(), "b")), (Some(b"1".to_vec()), None));
}

#[test]
fn a_store_that_never_reached_the_disk_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    drop(Store::create(&budget, root.path(), &identity()).unwrap());
    assert!(matches!(Store::open(&budget, root.path(), &identity()).unwrap(), Opening::Missing));
    Store::create(&budget, root.path(), &identity()).unwrap();
}

#[test]
fn a_store_in_use_is_locked_by_name() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    let _store = Store::create(&budget, root.path(), &identity()).unwrap();
    std::fs::write(root.path().join("CURRENT.probe"), b"").unwrap();
    let error = Store::open(&budget, root.path(), &identity()).unwrap_err();
    assert_eq!(error, StoreError::Locked(root.path().to_path_buf()));
    assert!(error.to_string().contains("in use by another process"));
    assert!(matches!(Store::destroy(&budget, root.path()), Err(StoreError::Locked(_))));
}

#[test]
fn somebody_elses_store_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    Store::create(&budget, root.path(), &identity()).unwrap().close().unwrap();
    let others = [
        Identity { cluster_id: "other".into(), ..identity() },
        Identity { incarnation: "other".into(), ..identity() },
        Identity { changelog_topic_id: "other".into(), ..identity() },
    ];
    for other in others {
        let opening = Store::open(&budget, root.path(), &other).unwrap();
        assert!(matches!(opening, Opening::Unusable(Unusable::Foreign { .. })), "{opening:?}");
    }
    assert!(matches!(Store::open(&budget, root.path(), &identity()).unwrap(), Opening::Ready(_)));
}

#[test]
fn stores_can_live_in_memory() {
    let budget = StoreBudget::in_memory(BudgetConfig::default()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = &root.path().join("0");
    assert!(matches!(Store::open(&budget, dir, &identity()).unwrap(), Opening::Missing));
    let mut store = Store::create(&budget, dir, &identity()).unwrap();
    write(&mut store, &[("a", Some("1"))], 1);
    store.close().unwrap();
    let store = ready(Store::open(&budget, dir, &identity()).unwrap());
    assert_eq!(read(&store.reader(), "a"), Some(b"1".to_vec()));
    drop(store);
    Store::destroy(&budget, dir).unwrap();
    assert!(matches!(Store::open(&budget, dir, &identity()).unwrap(), Opening::Missing));
    // The crate makes the directory; nothing is ever in it.
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn a_reader_outlives_its_store_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    let store = Store::create(&budget, root.path(), &identity()).unwrap();
    let reader = store.reader();
    store.close().unwrap();
    assert_eq!(reader.snapshot(|snapshot| snapshot.get("plain", b"a")), Err(StoreError::Closed));
    assert_eq!(reader.flush(), Err(StoreError::Closed));
}

#[test]
fn a_query_pages_through_a_store_and_stays_in_it() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    let mut store = Store::create(&budget, root.path(), &identity()).unwrap();
    let names: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    let rows: Vec<_> = names.iter().map(|name| (name.as_str(), Some("v"))).collect();
    write(&mut store, &rows, 1);
    let other = key("plaio", "k");
    store.write([(other.as_slice(), Some(&b"v"[..]))].into_iter(), progress(2)).unwrap();

    let scan = |start: &str, end: Option<&str>, limit| {
        let page = store
            .reader()
            .snapshot(|snapshot| snapshot.scan("plain", start.as_bytes(), end.map(str::as_bytes), limit));
        let page = page.unwrap();
        let keys = page.keys.iter().map(|key| String::from_utf8(key.unwrap().to_vec()).unwrap());
        (keys.collect::<Vec<_>>(), page.more)
    };
    assert_eq!(scan("", None, 100), (names.clone(), false));
    assert_eq!(scan("", None, 4), (names[..4].to_vec(), true));
    assert_eq!(scan("k2", Some("k5"), 3), (names[2..5].to_vec(), false), "exactly full is not more");
    assert_eq!(scan("k5", Some("k2"), 3), (vec![], false));
    assert_eq!(scan("", None, 0), (vec![], true));
}

#[test]
fn a_page_ends_at_a_mebibyte_but_always_holds_a_row() {
    let view = View::default();
    let mut view_with = View::default();
    let large = vec![1u8; 700 << 10];
    let mut writes = Writes::default();
    for name in ["a", "b", "c"] {
        writes.sources.push(0);
        writes.stores.push(0);
        writes.keys.push(Some(name.as_bytes()));
        writes.values.push(Some(&large));
    }
    view_with.put_many(writes).unwrap();
    let page = view_with.scan(0, b"", None, 10).unwrap();
    assert_eq!((page.keys.len(), page.more), (1, true));
    assert_eq!(view.scan(0, b"", None, 10).unwrap().keys.len(), 0);
}

#[test]
fn idle_stores_are_flushed_by_age_and_the_largest_first_by_size() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    let make = |name: &str| Store::create(&budget, &root.path().join(name), &identity()).unwrap();
    let (mut small, mut large) = (make("small"), make("large"));
    let value = "v".repeat(1000);
    write(&mut small, &[("a", Some("1"))], 1);
    for round in 0..500 {
        write(&mut large, &[(format!("k{round}").as_str(), Some(&value))], 1);
    }
    let readers = [small.reader(), large.reader()];
    let unflushed = || readers.iter().map(|reader| reader.unflushed().unwrap().bytes > 0).collect::<Vec<_>>();
    let second = Duration::from_secs;
    let mut rule = FlushRule { age_max: second(60), bytes_max: 1 << 30 };
    assert_eq!(flush_due(&readers, second(1), &rule), Ok(0));
    rule.bytes_max = 300_000;
    assert_eq!(flush_due(&readers, second(2), &rule), Ok(1));
    assert_eq!(unflushed(), [true, false]);
    assert_eq!(flush_due(&readers, second(60), &rule), Ok(0));
    assert_eq!(flush_due(&readers, second(61), &rule), Ok(1));
    assert_eq!(unflushed(), [false, false]);
}

fn prefetched(view: &mut View, names: &[&str]) -> Vec<(String, Option<String>)> {
    let mut column = Column::default();
    names.iter().for_each(|name| column.push(Some(name.as_bytes())));
    let fetched = view.prefetch(&column).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut rows: Vec<_> = fetched
        .keys
        .iter()
        .zip(fetched.values.iter())
        .map(|(key, value)| (text(key.unwrap()), value.map(text)))
        .collect();
    rows.sort();
    rows
}

#[test]
fn a_batch_gets_the_state_of_its_distinct_keys_from_every_layer() {
    let root = tempfile::tempdir().unwrap();
    let budget = StoreBudget::new(BudgetConfig::default()).unwrap();
    let mut store = Store::create(&budget, root.path(), &identity()).unwrap();
    write(&mut store, &[("disk", Some("d")), ("frozen", Some("old")), ("active", Some("old"))], 1);
    let mut view =
        View::new(stores(), Some(store.reader()), &CacheBudget::new(8 << 20), ViewLimits::default());
    let change = |view: &mut View, name: &str, value: Option<&str>| {
        let mut writes = Writes { sources: vec![0], stores: vec![0], ..Writes::default() };
        writes.keys.push(Some(name.as_bytes()));
        writes.values.push(value.map(str::as_bytes));
        view.absorb(&writes, |_| true).unwrap();
    };
    change(&mut view, "frozen", Some("f"));
    change(&mut view, "deleted", None);
    view.freeze().unwrap();
    assert!(view.freeze().is_none(), "one frozen overlay at most");
    change(&mut view, "active", Some("a"));

    let names = ["disk", "frozen", "active", "deleted", "absent", "disk"];
    let some = |text: &str| Some(text.to_owned());
    let expected = vec![
        ("absent".to_owned(), None),
        ("active".to_owned(), some("a")),
        ("deleted".to_owned(), None),
        ("disk".to_owned(), some("d")),
        ("frozen".to_owned(), some("f")),
    ];
    assert_eq!(prefetched(&mut view, &names), expected);

    // Known values come from memory: the store may even be gone.
    view.committed();
    store.close().unwrap();
    assert_eq!(prefetched(&mut view, &names), expected);
    assert_eq!(view.get(0, b"disk"), Ok(Some(b"d".to_vec())));
    assert_eq!(view.get(0, b"unknown"), Err(StoreError::Closed));
}

#[test]
fn a_prefetch_stops_at_its_bound_and_the_rest_is_asked_for() {
    let limits = ViewLimits { prefetch_bytes_max: 25, ..ViewLimits::default() };
    let mut view = View::new(stores(), None, &CacheBudget::new(0), limits);
    assert_eq!(prefetched(&mut view, &["0123456789", "1123456789", "2123456789"]).len(), 2);
}

#[test]
fn what_a_call_hands_over_again_and_again_is_bounded_by_the_sum_of_it() {
    let limits = ViewLimits { scratch_bytes_max: 10_000, ..ViewLimits::default() };
    let mut view = View::new(stores(), None, &CacheBudget::new(0), limits);
    let mut same = Writes { sources: vec![0], stores: vec![0], ..Writes::default() };
    same.keys.push(Some(b"k"));
    same.values.push(None);
    for writes in [Writes::default(), same] {
        let handed = (0..1_000).take_while(|_| view.put_many(writes.clone()).is_ok()).count();
        assert!((20..100).contains(&handed), "{handed} times");
        view.take_scratch();
        assert!(view.put_many(writes).is_ok(), "another call");
        view.take_scratch();
    }
}

#[test]
fn hostile_scratch_is_refused() {
    let limits = ViewLimits { scratch_bytes_max: 1000, ..ViewLimits::default() };
    let mut view = View::new(stores(), None, &CacheBudget::new(0), limits);
    let writes = |store, size: usize| {
        let mut writes = Writes { sources: vec![0], stores: vec![store], ..Writes::default() };
        writes.keys.push(Some(b"k"));
        writes.values.push(Some(&vec![0; size]));
        writes
    };
    assert!(matches!(view.put_many(writes(2, 1)), Err(StoreError::Refused(_))), "an unknown store");
    assert!(view.put_many(writes(0, 500)).is_ok());
    assert!(matches!(view.put_many(writes(0, 500)), Err(StoreError::Refused(_))), "too much for one call");
    assert!(view.get(7, b"k").is_err() && view.scan(7, b"", None, 1).is_err());
}
