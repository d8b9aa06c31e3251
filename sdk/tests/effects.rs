//! What a handler asks for, and what is left of it when its record fails: the SDK's loop against a
//! model, and each promise of the documentation on its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidemill_sdk::testing::{Driver, Order, Outcome, record};
use tidemill_sdk::{Bytes, Context, Failure, Handler, Json, Level, Null, Record, Store};

/// Does what a record's value says, in lines.
struct Told {
    state: Store<String>,
}

impl Handler for Told {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        for line in record.text()?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["put", key, value] => self.state.put(ctx, key, value),
                ["delete", key] => self.state.delete(ctx, key),
                ["get", key] => {
                    let value = self.state.get(ctx, key)?;
                    ctx.emit("out", key, value)?;
                }
                ["scan", prefix] => self.scan(prefix, ctx)?,
                ["fail"] => return Err(Failure::transient("told to")),
                _ => return Err(Failure::permanent(format!("unknown: {line}"))),
            }
        }
        Ok(())
    }
}

impl Told {
    fn scan(&self, prefix: &str, ctx: &mut Context) -> Result<(), Failure> {
        let mut scan = self.state.scan(prefix);
        let mut found = String::new();
        while let Some((key, value)) = scan.next(ctx)? {
            found += &format!("{}:{value},", String::from_utf8_lossy(key));
        }
        ctx.emit("out", "scan", found)
    }
}

tidemill_sdk::export!(Told {
    inputs: ["in"],
    outputs: ["out"],
    stores: ["state" { prefetch, ordered }],
});

fn told(driver: &mut Driver<Told>, records: &[&str]) -> Vec<Outcome> {
    driver.feed(records.iter().map(|commands| record("in").value(commands)))
}

#[test]
fn a_failed_record_leaves_nothing_and_its_neighbours_everything() {
    let mut driver = Driver::<Told>::new();
    let outcomes =
        told(&mut driver, &["put a 1\nget a", "put a 2\nput b 2\nget a\ndelete c\nfail", "get a\nget b"]);
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Transient("told to".into()), Outcome::Ok]);
    assert_eq!(driver.emitted("out"), ["a=1", "a=1", "b=null"]);
    assert_eq!(driver.state::<String>("state", "a").as_deref(), Some("1"));
    assert_eq!(driver.keys("state"), [b"a"]);
}

#[test]
fn the_node_is_asked_once_for_what_a_batch_reads_often() {
    let mut driver = Driver::<Told>::new();
    told(&mut driver, &["get a\nget a", "get a\nput a 1\nget a"]);
    assert_eq!(driver.state_reads(), 1);
    told(&mut driver, &["get a"]);
    assert_eq!(driver.state_reads(), 2, "the next batch asks again: instance memory is not state");
    driver.feed([record("in").key("a").value("get a")]);
    assert_eq!(driver.state_reads(), 2, "the record's own key is handed over with the batch");
}

#[test]
fn a_scan_has_every_page_and_what_the_call_wrote_before_it() {
    let mut driver = Driver::<Told>::new();
    let mut expected = String::new();
    for number in 0..2_500 {
        driver.set_state::<String>("state", format!("p/{number:04}"), "v");
        if number != 7 {
            expected += &format!("p/{number:04}:v,");
        }
    }
    driver.set_state::<String>("state", "q", "beyond the prefix");
    told(&mut driver, &["put p/9999 new", "delete p/0007\nscan p/"]);
    assert_eq!(driver.emitted("out"), [format!("scan={expected}p/9999:new,")]);
}

#[test]
fn what_a_failed_record_handed_over_for_its_scan_is_never_seen_again() {
    let mut driver = Driver::<Told>::new();
    driver.set_state::<String>("state", "a", "old");
    told(
        &mut driver,
        &["put b 1", "put a 2\nput c 2\ndelete b\nscan -\nput d 2\nput a 3\nfail", "scan ", "put e 1\nscan "],
    );
    assert_eq!(driver.emitted("out"), ["scan=a:old,b:1,", "scan=a:old,b:1,e:1,"]);
    assert_eq!(driver.keys("state"), [b"a", b"b", b"e"]);
}

#[test]
fn random_batches_do_what_a_model_does() {
    for seed in 0..400u64 {
        let mut random = Random(seed);
        let mut driver = Driver::<Told>::new();
        let mut model = Model::default();
        for _ in 0..4 {
            let records: Vec<String> = (0..random.below(8)).map(|_| random.record()).collect();
            records.iter().for_each(|record| model.handle(record));
            told(&mut driver, &records.iter().map(String::as_str).collect::<Vec<_>>());
        }
        assert_eq!(driver.emitted("out"), model.emitted, "seed {seed}");
        let keys: Vec<String> = model.state.keys().cloned().collect();
        assert_eq!(
            driver.keys("state"),
            keys.iter().map(|key| key.as_bytes()).collect::<Vec<_>>(),
            "seed {seed}"
        );
        for (key, value) in &model.state {
            assert_eq!(driver.state::<String>("state", key).as_ref(), Some(value), "seed {seed}");
        }
    }
}

/// A multiplicative generator: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 31)) % end
    }

    fn record(&mut self) -> String {
        let mut lines = Vec::new();
        for _ in 0..self.below(6) {
            let key = ["a", "b", "ab", "c"][self.below(4) as usize];
            lines.push(match self.below(8) {
                0..3 => format!("put {key} {}", self.below(100)),
                3 => format!("delete {key}"),
                4..6 => format!("get {key}"),
                6 => format!("scan {}", ["", "a"][self.below(2) as usize]),
                _ => "fail".into(),
            });
        }
        lines.join("\n")
    }
}

#[derive(Default)]
struct Model {
    state: BTreeMap<String, String>,
    emitted: Vec<String>,
}

impl Model {
    fn handle(&mut self, commands: &str) {
        let (mut state, mut emitted) = (self.state.clone(), Vec::new());
        for line in commands.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["put", key, value] => drop(state.insert(key.into(), value.into())),
                ["delete", key] => drop(state.remove(key)),
                ["get", key] => {
                    emitted.push(format!("{key}={}", state.get(key).map_or("null", String::as_str)))
                }
                ["scan", prefix] => {
                    let rows = state.iter().filter(|(key, _)| key.starts_with(prefix));
                    emitted
                        .push(format!("scan={}", rows.map(|(k, v)| format!("{k}:{v},")).collect::<String>()));
                }
                _ => return,
            }
        }
        self.state = state;
        self.emitted.extend(emitted);
    }
}

#[test]
fn later_records_of_a_failed_key_wait_as_the_order_says() {
    let outcomes = |order| {
        let mut driver = Driver::<Told>::new();
        driver.set_order(order);
        let records = [("a", "fail"), ("b", "get b"), ("a", "get a")];
        driver.feed(records.map(|(key, value)| record("in").key(key).value(value)))
    };
    let failed = || Outcome::Transient("told to".into());
    assert_eq!(outcomes(Order::Key), [failed(), Outcome::Ok, Outcome::Blocked]);
    assert_eq!(outcomes(Order::All), [failed(), Outcome::Blocked, Outcome::Blocked]);
    assert_eq!(outcomes(Order::None), [failed(), Outcome::Ok, Outcome::Ok]);
    let mut driver = Driver::<Told>::new();
    let outcomes = told(&mut driver, &["fail", "get a"]);
    assert_eq!(outcomes, [failed(), Outcome::Ok], "records without a key have no order among themselves");
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Basket {
    items: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    greeting: String,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { greeting: "hello".into() }
    }
}

/// One of everything.
struct Everything {
    settings: Settings,
    balance: Store<i64>,
    ratio: Store<f64>,
    basket: Store<Json<Basket>>,
    raw: Store<Bytes>,
}

impl Handler for Everything {
    fn handle(&self, record: &Record<'_>, ctx: &mut Context) -> Result<(), Failure> {
        let key = record.key()?;
        match record.input() {
            "numbers" => {
                let balance = self.balance.get(ctx, key)?.unwrap_or_default() - 1;
                self.balance.put(ctx, key, &balance);
                self.ratio.put(ctx, key, &(1.0 / balance as f64));
                self.raw.put(ctx, key, &[0, 255]);
                let mut basket = self.basket.get(ctx, key)?.unwrap_or_default();
                basket.items.push(self.settings.greeting.clone());
                self.basket.put(ctx, key, &basket);
                tidemill_sdk::info!(ctx, "balance {balance}");
                ctx.emit("out", Null, Json(&basket))
            }
            "headers" => {
                let id = record.header("id").unwrap_or(b"none");
                // Begun and not sent: not emitted.
                drop(ctx.to("out").key("never").value("sent"));
                ctx.to("out")
                    .key(key)
                    .value(id)
                    .header("was", id)
                    .headers_of(record)
                    .partition(3)
                    .timestamp(9)
                    .send()
            }
            "baskets" => ctx.emit("out", key, Json(record.json::<Basket>()?)),
            _ => ctx.emit("nowhere", key, Null),
        }
    }
}

tidemill_sdk::export!(Everything {
    inputs: ["numbers", "headers", "baskets", "other"],
    outputs: ["out"],
    stores: ["balance", "ratio" { schema: 2, reads: [1] }, "shopping-basket" { field: basket }, "raw"],
    config: settings,
    wants_headers: true,
});

#[test]
fn a_manifest_names_the_forms_that_are_read_where_there_are_any() {
    use tidemill_sdk::guest::Definition;
    let manifest = String::from_utf8(Everything::declaration().manifest()).expect("JSON");
    assert!(manifest.contains(r#"{"name":"ratio","type":"f64","schema":2,"reads":[1],"#), "{manifest}");
    assert!(manifest.contains(r#"{"name":"balance","type":"i64","schema":1,"prefetch""#), "{manifest}");
}

#[test]
fn typed_stores_keep_their_types() {
    let mut driver = Driver::<Everything>::with_config(r#"{"greeting": "hi"}"#);
    assert_eq!(
        driver.feed([record("numbers").key("k"), record("numbers").key("k")]),
        [Outcome::Ok, Outcome::Ok]
    );
    assert_eq!(driver.state::<i64>("balance", "k"), Some(-2));
    assert_eq!(driver.state::<f64>("ratio", "k"), Some(-0.5));
    assert_eq!(driver.state::<Bytes>("raw", "k"), Some(vec![0, 255]));
    let basket = driver.state::<Json<Basket>>("shopping-basket", "k");
    assert_eq!(basket, Some(Basket { items: vec!["hi".into(), "hi".into()] }));
    assert_eq!(driver.emitted("out")[0], r#"null={"items":["hi"]}"#);
    assert_eq!(driver.logs(), [(Level::Info, "balance -1".into()), (Level::Info, "balance -2".into())]);
}

#[test]
fn state_of_another_form_fails_the_record_for_good() {
    let mut driver = Driver::<Everything>::new();
    driver.set_state::<Bytes>("balance", "k", b"12");
    let outcomes = driver.feed([record("numbers").key("k")]);
    assert_eq!(outcomes, [Outcome::Permanent("the state has 2 bytes where i64 has 8".into())]);
    assert!(driver.keys("raw").is_empty());
}

#[test]
fn what_is_no_json_fails_as_decode_and_json_of_another_form_as_schema() {
    let mut driver = Driver::<Everything>::new();
    let values = [r#"{"items":["a"]}"#, r#"{"items":["#, "{}", r#"{"items":1}"#];
    let outcomes = driver.feed(values.map(|value| record("baskets").key(value).value(value)));
    assert!(
        matches!(&outcomes[..], [Outcome::Ok, Outcome::Decode(_), Outcome::Schema(_), Outcome::Schema(_)]),
        "{outcomes:?}"
    );
}

#[test]
fn an_emission_carries_what_it_was_given() {
    let mut driver = Driver::<Everything>::new();
    driver.feed([record("headers").key("k").header("id", "1").header("id", "2").timestamp(5)]);
    let [emitted] = driver.emissions() else { panic!("one emission: {:?}", driver.emissions()) };
    assert_eq!((emitted.partition, emitted.timestamp), (Some(3), Some(9)));
    assert_eq!(emitted.value.as_deref(), Some(&b"2"[..]), "the last header of a name counts");
    let names: Vec<&str> = emitted.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["was", "id", "id"]);
}

#[test]
fn an_output_that_is_not_declared_fails_the_record() {
    let mut driver = Driver::<Everything>::new();
    let outcomes = driver.feed([record("other").key("k")]);
    assert!(
        matches!(&outcomes[..], [Outcome::Permanent(reason)] if reason.contains("nowhere")),
        "{outcomes:?}"
    );
}
