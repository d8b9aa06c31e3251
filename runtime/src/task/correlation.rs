//! Correlation: what an emission, a delivery or a dead letter inherits from the record that caused it.
//!
//! | header | value |
//! |---|---|
//! | `correlation-id` | the record's own, else its trace id, else its id |
//! | `causation-id` | the record's id |
//! | `traceparent`, `tracestate`, `baggage` | the record's own, unchanged |
//!
//! A record's id is its `ce-id`, else its `tidemill-id`, else its place:
//! `incarnation/topic id/partition/offset`, with the topic's name where brokers have no ids. A header that the handler sets itself stays as it is.
//!
//! Emissions inherit when the deployment says `correlation: true`; otherwise nothing here runs, and headers
//! are not even read.

use super::numbers::NO_ID;
use super::{TaskConfig, TaskInput};
use crate::effects::Emissions;
use crate::record::headers::{self, Header};
use crate::record::{Batch, Column};

pub const CORRELATION: &str = "correlation-id";
pub const CAUSATION: &str = "causation-id";
/// Passed on as they are, in this order: W3C Trace Context and Baggage.
pub const PASSED_ON: [&str; 3] = ["traceparent", "tracestate", "baggage"];
/// Names of the header that a correlation id comes in, by preference.
const CORRELATION_NAMES: [&str; 3] = [CORRELATION, "correlation_id", "ce-correlationid"];
/// Names of the header that a record's id comes in, by preference.
const ID_NAMES: [&str; 2] = ["ce-id", "tidemill-id"];

/// Longest id that is passed on, in bytes: one that is longer is no id.
const ID_BYTES_MAX: usize = 1024;

/// The value of the first of these headers that is there and not empty.
pub(super) fn first_of<'a>(own: &[Header<'a>], names: &[&str]) -> Option<&'a [u8]> {
    let value_of = |name: &&str| own.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?.1;
    names.iter().filter_map(value_of).find(|value| !value.is_empty() && value.len() <= ID_BYTES_MAX)
}

/// The trace id of a `traceparent`: `00-<32 hexadecimal digits>-<16>-<2>`.
fn trace_id<'a>(own: &[Header<'a>]) -> Option<&'a [u8]> {
    let value = first_of(own, &PASSED_ON[..1])?;
    let parts: Vec<&[u8]> = value.split(|&byte| byte == b'-').collect();
    let [version, trace, parent, ..] = parts.as_slice() else { return None };
    let is_hex = |part: &[u8], length: usize| {
        part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_valid = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16);
    (is_valid && trace.iter().any(|&byte| byte != b'0')).then_some(*trace)
}

/// What the record belongs to, by its own headers and its place.
pub fn correlation_id(own: &[Header<'_>], place: &str) -> Vec<u8> {
    let known = first_of(own, &CORRELATION_NAMES).or_else(|| trace_id(own));
    known.map_or_else(|| record_id(own, place), <[u8]>::to_vec)
}

/// The record's own id, by its headers and its place.
pub fn record_id(own: &[Header<'_>], place: &str) -> Vec<u8> {
    first_of(own, &ID_NAMES).unwrap_or(place.as_bytes()).to_vec()
}

/// A header that is handed on: name and value.
pub type Inherited = (&'static str, Vec<u8>);

/// The headers that whatever a record causes inherits, given the record's own headers and its place
/// ([`TaskConfig::place`]).
pub fn inherited<'a>(own: &[Header<'a>], place: &str) -> Vec<Inherited> {
    let mut list = vec![(CORRELATION, correlation_id(own, place)), (CAUSATION, record_id(own, place))];
    for name in PASSED_ON {
        let value =
            own.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).and_then(|(_, value)| *value);
        list.extend(value.map(|value| (name, value.to_vec())));
    }
    list
}

/// Headers of an effect, in Kafka's encoding, with what it inherits behind those that its handler set.
pub fn join(set: Option<&[u8]>, inherited: &[Inherited]) -> Vec<u8> {
    // What the handler hands over has been checked; bytes that are no headers would not be here.
    let mut all = set.map(|set| headers::decode_raw(set).unwrap_or_default()).unwrap_or_default();
    for (name, value) in inherited {
        if !all.iter().any(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes())) {
            all.push((name.as_bytes(), Some(value)));
        }
    }
    headers::encode(all.into_iter())
}

impl TaskConfig {
    /// A record's place, which no other record has: `incarnation/topic/partition/offset`, the topic by its identity.
    pub fn place(&self, topic: &str, partition: i32, offset: u64) -> String {
        format!("{}/{topic}/{partition}/{offset}", self.incarnation)
    }

    /// Topic and offset of the record at a place. No topic = it is no input any more.
    pub(super) fn record_at<'a>(&'a self, place: &'a str) -> (&'a str, &'a str) {
        let mut parts = place.rsplit('/');
        let offset = parts.next().unwrap_or_default();
        let topic = parts.nth(1).unwrap_or_default();
        // Rows of before have this in the place of the name, so they are of any input. If there is but one, of that.
        let only = || self.inputs.first().filter(|_| topic == NO_ID && self.inputs.len() == 1);
        let input = self.inputs.iter().find(|input| input.identity() == topic).or_else(only);
        (input.map_or("", |input| input.topic.as_str()), offset)
    }

    /// Lets the emissions of a call inherit from its records. The work of a record is done once, however
    /// many emissions it has.
    pub(super) fn correlate(&self, batch: &Batch, emissions: &mut Emissions) {
        let own: Vec<Option<&[u8]>> = batch.headers.iter().collect();
        let input = self.inputs.get(usize::from(batch.input));
        let topic = input.map_or("", TaskInput::identity);
        let mut joined = Column::with_capacity(emissions.len(), emissions.len() * 128);
        // Of the last source: what it hands on, as a list and encoded.
        let mut of: Option<(u32, Vec<Inherited>, Vec<u8>)> = None;
        for (&source, set) in emissions.sources.iter().zip(emissions.headers.iter()) {
            let (_, list, alone) = match of.take().filter(|(known, ..)| *known == source) {
                Some(known) => of.insert(known),
                None => {
                    let row = source as usize;
                    let offset = batch.offsets.get(row).copied().unwrap_or_default() as u64;
                    let place = self.place(topic, batch.partition, offset);
                    let bytes = own.get(row).copied().flatten().unwrap_or_default();
                    let own = if bytes.is_empty() {
                        Vec::new()
                    } else {
                        headers::decode(bytes).unwrap_or_default()
                    };
                    let list = inherited(&own, &place);
                    let alone = join(None, &list);
                    of.insert((source, list, alone))
                }
            };
            match set {
                None => joined.push(Some(alone)),
                Some(set) => joined.push(Some(&join(Some(set), list))),
            }
        }
        emissions.headers = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn text(list: &[Inherited]) -> Vec<String> {
        list.iter().map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value))).collect()
    }

    #[test]
    fn what_a_record_causes_inherits_its_ids_and_its_trace() {
        let own = [
            ("Correlation-Id", Some(&b"c-7"[..])),
            ("ce-id", Some(b"e-1")),
            ("traceparent", Some(PARENT)),
            ("tracestate", Some(b"vendor=1")),
            ("baggage", Some(b"tenant=a")),
            ("other", Some(b"stays behind")),
        ];
        let parent = format!("traceparent={}", String::from_utf8_lossy(PARENT));
        let expected =
            ["correlation-id=c-7", "causation-id=e-1", &parent, "tracestate=vendor=1", "baggage=tenant=a"];
        assert_eq!(text(&inherited(&own, "life/topic/0/7")), expected);
    }

    #[test]
    fn without_an_id_of_its_own_a_record_is_named_by_its_trace_or_its_place() {
        let traced = [("traceparent", Some(PARENT))];
        assert_eq!(correlation_id(&traced, "p"), b"0af7651916cd43dd8448eb211c80319c");
        assert_eq!(record_id(&traced, "life/topic/0/7"), b"life/topic/0/7");
        for wrong in [&b"00-0-1-01"[..], b"", b"00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            assert_eq!(correlation_id(&[("traceparent", Some(wrong))], "p"), b"p", "{wrong:?}");
        }
    }

    #[test]
    fn what_a_handler_sets_itself_stays_as_it_is() {
        let set = headers::encode([("CORRELATION-ID", Some(&b"mine"[..])), ("x", None)].into_iter());
        let joined = join(Some(&set), &[(CORRELATION, b"c".to_vec()), (CAUSATION, b"i".to_vec())]);
        let all = headers::decode(&joined).unwrap();
        let expected = [("CORRELATION-ID", Some(&b"mine"[..])), ("x", None), (CAUSATION, Some(b"i"))];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_header_whose_name_is_no_text_goes_along_as_it_is() {
        let set = headers::encode([(&b"\xff"[..], Some(&b"1"[..]))].into_iter());
        let joined = join(Some(&set), &inherited(&[], "place"));
        let all = headers::decode_raw(&joined).unwrap();
        assert_eq!((all[0], all.len()), ((&b"\xff"[..], Some(&b"1"[..])), 3));
    }
}
