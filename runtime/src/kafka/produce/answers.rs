//! What brokers' answers mean, by their codes: the whole policy of the producer towards errors.
//!
//! Pure. A code that is in no list here is one whose effect is not known: rule P1.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::InitProducerIdResponse;

use super::partition::Identity;
use crate::ports::{CommitError, SourceError};

/// What a leader says of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is in the log.
    Taken,
    /// To be sent again as it is, with the same sequence number, if it has one: if it is in the log already, it is not
    /// appended twice then. `moved` = the leader has to be looked for first.
    Again { moved: bool },
    /// One before it is missing in the log.
    OutOfOrder,
    /// Refused for what is in it.
    Refused,
    /// Anything else: that another producer has the transactional id, or that the transaction took too long, as well.
    Unknown,
}

/// What a coordinator says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    /// Not done, or to no more effect than the same request has again.
    Again,
    /// The same, and it may be another broker's to do.
    Elsewhere,
    /// The group has moved on.
    Generation,
    /// Anything else.
    Refused(ResponseError),
}

/// Why a commit cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Definite once the commit is aborted.
    Generation(String),
    /// Definite once the commit is aborted.
    Record { topic: String, reason: String },
    /// A broker refuses, and will do so again.
    Refused(ResponseError, String),
    /// It took too long, or has no answer, or one that says nothing.
    Unknown(String),
}

pub(super) fn of_batch(code: i16) -> Verdict {
    use ResponseError as E;
    match ResponseError::try_from_code(code) {
        // Brokers of today answer a repetition as they answered the first time.
        None | Some(E::DuplicateSequenceNumber) => Verdict::Taken,
        Some(
            E::NotLeaderOrFollower
            | E::LeaderNotAvailable
            | E::UnknownTopicOrPartition
            | E::ReplicaNotAvailable
            | E::FencedLeaderEpoch
            | E::UnknownLeaderEpoch
            | E::KafkaStorageError
            | E::NetworkException,
        ) => Verdict::Again { moved: true },
        // The last four: a leader asks the transaction's coordinator before it takes the first batch of a
        // partition (KIP-890). Most brokers answer NOT_ENOUGH_REPLICAS for them.
        Some(
            E::NotEnoughReplicas
            | E::NotEnoughReplicasAfterAppend
            | E::RequestTimedOut
            | E::CoordinatorLoadInProgress
            | E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::ConcurrentTransactions,
        ) => Verdict::Again { moved: false },
        Some(E::OutOfOrderSequenceNumber) => Verdict::OutOfOrder,
        Some(
            E::MessageTooLarge
            | E::RecordListTooLarge
            | E::InvalidRecord
            | E::InvalidTimestamp
            // A negative size, where records are meant.
            | E::InvalidFetchSize
            | E::PolicyViolation,
        ) => Verdict::Refused,
        Some(_) => Verdict::Unknown,
    }
}

/// Of the transaction as a whole.
///
/// COORDINATOR_NOT_AVAILABLE also says that the coordinator could not write its log in time, which may have
/// been written all the same. The same request again has no other effect then: a partition is added twice, a
/// decided transaction decided the same way.
pub(super) fn of_transaction(code: i16) -> Reply {
    use ResponseError as E;
    match ResponseError::try_from_code(code) {
        None => Reply::Done,
        Some(E::ConcurrentTransactions | E::CoordinatorLoadInProgress) => Reply::Again,
        Some(E::NotCoordinator | E::CoordinatorNotAvailable) => Reply::Elsewhere,
        Some(error) => Reply::Refused(error),
    }
}

/// Of partitions that a request names: a broker may not have heard yet of a topic that is new.
pub(super) fn of_partitions(code: i16) -> Reply {
    match ResponseError::try_from_code(code) {
        Some(ResponseError::UnknownTopicOrPartition) => Reply::Again,
        _ => of_transaction(code),
    }
}

/// Of offsets. The four say for certain that the offsets were not taken, and no other does.
pub(super) fn of_offsets(code: i16) -> Reply {
    use ResponseError as E;
    match ResponseError::try_from_code(code) {
        Some(E::IllegalGeneration | E::UnknownMemberId | E::FencedInstanceId | E::RebalanceInProgress) => {
            Reply::Generation
        }
        _ => of_partitions(code),
    }
}

/// One code for the partitions of an answer, of which `asked` were asked for. What is worst counts; that one was not
/// attempted only says that another is refused.
pub(super) fn worst(codes: impl Iterator<Item = i16>, asked: usize) -> i16 {
    let rank = |code: &i16| match of_offsets(*code) {
        _ if *code == ResponseError::OperationNotAttempted.code() => 1,
        Reply::Done => 0,
        Reply::Again | Reply::Elsewhere => 2,
        Reply::Generation => 3,
        Reply::Refused(_) => 4,
    };
    let mut count = 0;
    let worst = codes.inspect(|_| count += 1).max_by_key(rank).unwrap_or(0);
    // What is left out has no outcome.
    if count == asked { worst } else { ResponseError::UnknownServerError.code() }
}

/// Who produces from now on.
pub(super) fn identity(
    response: &InitProducerIdResponse,
    is_transactional: bool,
) -> Result<Identity, Trouble> {
    let (id, epoch) = (response.producer_id.0, response.producer_epoch);
    match id >= 0 && epoch >= 0 {
        true => Ok(Identity { id, epoch, is_transactional }),
        false => Err(Trouble::Unknown("the broker gave no producer id".to_owned())),
    }
}

/// A broker's error by its name.
pub(super) fn describe(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        Some(error) => format!("the broker says {error}"),
        None => "the broker says nothing is wrong".to_owned(),
    }
}

/// Errors that only a person can help with.
fn is_final(error: ResponseError) -> bool {
    use ResponseError as E;
    matches!(
        error,
        E::TransactionalIdAuthorizationFailed
            | E::ClusterAuthorizationFailed
            | E::TopicAuthorizationFailed
            | E::GroupAuthorizationFailed
            | E::SaslAuthenticationFailed
            | E::InvalidTransactionTimeout
            | E::InvalidRequest
            | E::UnsupportedVersion
    )
}

impl Trouble {
    /// The commit is known to be open still, or was never begun: it can be aborted.
    pub fn is_definite(&self) -> bool {
        matches!(self, Trouble::Generation(_) | Trouble::Record { .. })
    }

    /// The same where it is not definite, whatever it is.
    pub fn in_doubt(self) -> Trouble {
        match self {
            Trouble::Refused(..) => self,
            other => Trouble::Unknown(other.text()),
        }
    }

    fn text(self) -> String {
        match self {
            Trouble::Record { topic, reason } => format!("{topic}: {reason}"),
            Trouble::Generation(text) | Trouble::Refused(_, text) | Trouble::Unknown(text) => text,
        }
    }

    /// Of a producer that could not be made.
    pub fn into_source_error(self, context: &str) -> SourceError {
        let is_final = matches!(self, Trouble::Refused(error, _) if is_final(error));
        let text = format!("{context}: {}", self.text());
        if is_final { SourceError::Refused(text) } else { SourceError::Unavailable(text) }
    }
}

impl From<Trouble> for CommitError {
    fn from(trouble: Trouble) -> CommitError {
        match trouble {
            Trouble::Generation(text) => CommitError::Generation(text),
            Trouble::Record { topic, reason } => CommitError::Record { topic, reason },
            unknown => CommitError::Indefinite(unknown.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::ResponseError as E;

    use super::*;

    #[test]
    fn a_record_is_refused_for_what_it_is_and_for_nothing_else() {
        let refused: Vec<i16> = (-1..=133).filter(|&code| of_batch(code) == Verdict::Refused).collect();
        assert_eq!(refused, [4, 10, 18, 32, 44, 87]);
    }

    #[test]
    fn a_batch_that_was_there_already_is_taken() {
        assert_eq!(of_batch(0), Verdict::Taken);
        assert_eq!(of_batch(E::DuplicateSequenceNumber.code()), Verdict::Taken);
    }

    #[test]
    fn a_batch_is_sent_again_only_where_that_cannot_write_it_twice() {
        let again = |moved| {
            let is = move |code: &i16| of_batch(*code) == Verdict::Again { moved };
            (-1..=133).filter(is).collect::<Vec<i16>>()
        };
        assert_eq!(again(true), [3, 5, 6, 9, 13, 56, 74, 75]);
        assert_eq!(again(false), [7, 14, 15, 16, 19, 20, 51]);
        for error in [
            E::UnknownProducerId,
            E::InvalidTxnState,
            E::InvalidProducerEpoch,
            E::TopicAuthorizationFailed,
            E::Unknown(999),
        ] {
            assert_eq!(of_batch(error.code()), Verdict::Unknown, "{error}");
        }
    }

    #[test]
    fn the_end_of_a_transaction_is_repeated_for_four_answers() {
        let repeated: Vec<i16> = (-1..=133)
            .filter(|&code| matches!(of_transaction(code), Reply::Again | Reply::Elsewhere))
            .collect();
        assert_eq!(repeated, [14, 15, 16, 51]);
    }

    #[test]
    fn four_answers_refuse_offsets_for_certain() {
        let certain: Vec<i16> = (-1..=133).filter(|&code| of_offsets(code) == Reply::Generation).collect();
        assert_eq!(certain, [22, 25, 27, 82]);
        let asks_no_group = |code: i16| of_transaction(code) != Reply::Generation;
        assert!((-1..=133).all(asks_no_group), "the end of a transaction is never refused for certain");
    }

    #[test]
    fn the_worst_of_an_answer_counts_and_what_it_leaves_out_is_unknown() {
        let (unknown, denied) = (E::UnknownTopicOrPartition.code(), E::TopicAuthorizationFailed.code());
        let (not_attempted, stale) = (E::OperationNotAttempted.code(), E::IllegalGeneration.code());
        assert_eq!(worst([0, 0].into_iter(), 2), 0);
        assert_eq!(worst([not_attempted, unknown, not_attempted].into_iter(), 3), unknown);
        assert_eq!(worst([unknown, denied, stale].into_iter(), 3), denied);
        assert_eq!(worst([0, stale].into_iter(), 2), stale);
        assert_eq!(worst([0].into_iter(), 2), E::UnknownServerError.code());
        assert_eq!(worst(std::iter::empty(), 1), E::UnknownServerError.code());
    }

    #[test]
    fn what_can_be_aborted_is_told_apart_from_what_cannot() {
        let text = || "no".to_owned();
        let troubles = [
            Trouble::Record { topic: text(), reason: text() },
            Trouble::Generation(text()),
            Trouble::Refused(E::ProducerFenced, text()),
            Trouble::Unknown(text()),
        ];
        for trouble in troubles {
            assert!(!trouble.clone().in_doubt().is_definite());
            let is_definite = trouble.is_definite();
            assert_eq!(!matches!(CommitError::from(trouble), CommitError::Indefinite(_)), is_definite);
        }
    }

    #[test]
    fn an_answer_without_a_producer_id_makes_nobody_a_producer() {
        let answer = |id: i64, epoch| {
            let response = InitProducerIdResponse::default().with_producer_id(id.into());
            identity(&response.with_producer_epoch(epoch), false)
        };
        let plain = Identity { id: 7, epoch: 0, is_transactional: false };
        assert_eq!(answer(7, 0), Ok(plain));
        for (id, epoch) in [(-1, 0), (7, -1)] {
            assert!(matches!(answer(id, epoch), Err(Trouble::Unknown(_))), "{id} {epoch}");
        }
    }

    #[test]
    fn only_what_a_person_can_help_with_is_refused_at_the_start() {
        let made = |error: E| Trouble::Refused(error, "no".to_owned()).into_source_error("cannot");
        assert!(matches!(made(E::TransactionalIdAuthorizationFailed), SourceError::Refused(_)));
        assert!(matches!(made(E::UnknownServerError), SourceError::Unavailable(_)));
        let late = Trouble::Unknown("late".to_owned()).into_source_error("cannot");
        assert_eq!(late, SourceError::Unavailable("cannot: late".to_owned()));
    }
}
