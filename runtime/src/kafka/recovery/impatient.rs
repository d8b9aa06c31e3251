//! A reader of logs that can be left while it asks: each question is asked on a thread of its own, which takes the reader along
//! and brings it back with the answer. One that comes back to nobody ends there, within the time-outs of its requests.
//!
//! Reading itself stays where it is: it lends records, and ends by itself once it is stopped.

use crate::ports::{CommittedOffset, Log, LogView, Recovery, SourceError, Stop};
use crate::record::{InputPartition, Offset};

/// Reads as another reader does, and waits for its answers no longer than somebody wants them.
pub struct Impatient {
    /// None = it is still asked something by nobody.
    reader: Option<Box<dyn Recovery>>,
    stop: Stop,
}

impl Impatient {
    /// `reader` must heed the same stop while it reads.
    pub fn new(reader: Box<dyn Recovery>, stop: Stop) -> Impatient {
        Impatient { reader: Some(reader), stop }
    }

    fn ask<T: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut dyn Recovery) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let mut reader = self.reader.take().ok_or(SourceError::Stopped)?;
        let (reader, answer) = self.stop.aside(move || {
            let answer = question(reader.as_mut());
            (reader, answer)
        })?;
        self.reader = Some(reader);
        answer
    }
}

impl Recovery for Impatient {
    fn committed(
        &mut self,
        partitions: &[InputPartition],
    ) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
        let partitions = partitions.to_vec();
        self.ask(move |reader| reader.committed(&partitions))
    }

    fn look_up_again(&mut self) -> Result<(), SourceError> {
        self.ask(|reader| reader.look_up_again())
    }

    fn log_bounds(&mut self, log: Log, partition: i32) -> Result<(Offset, Offset), SourceError> {
        self.ask(move |reader| reader.log_bounds(log, partition))
    }

    fn read_log(
        &mut self,
        log: Log,
        partition: i32,
        range: (Offset, Offset),
        apply: &mut dyn FnMut(LogView<'_>) -> bool,
    ) -> Result<(), SourceError> {
        let reader = self.reader.as_mut().ok_or(SourceError::Stopped)?;
        reader.read_log(log, partition, range, apply)
    }
}

impl Drop for Impatient {
    /// Ending a client may take a while as well, which nobody waits for who is stopped.
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take_if(|_| self.stop.is_raised()) {
            // If there is no thread to be had, it ends here.
            let _ = std::thread::Builder::new().name("aside".to_owned()).spawn(move || drop(reader));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::ports::Interest;

    /// Says when it is asked and when it ends, and answers once it is told to.
    struct Slow {
        says: Sender<&'static str>,
        told: Receiver<()>,
    }

    impl Slow {
        fn answer<T>(&self, answer: T) -> Result<T, SourceError> {
            let _ = self.says.send("asked");
            let _ = self.told.recv();
            Ok(answer)
        }
    }

    impl Recovery for Slow {
        fn committed(
            &mut self,
            partitions: &[InputPartition],
        ) -> Result<Vec<Option<CommittedOffset>>, SourceError> {
            self.answer(vec![None; partitions.len()])
        }

        fn log_bounds(&mut self, _: Log, partition: i32) -> Result<(Offset, Offset), SourceError> {
            self.answer((Offset(0), Offset(partition as u64)))
        }

        fn read_log(
            &mut self,
            _: Log,
            _: i32,
            (from, _): (Offset, Offset),
            apply: &mut dyn FnMut(LogView<'_>) -> bool,
        ) -> Result<(), SourceError> {
            apply(LogView { offset: from, timestamp_ms: 0, key: b"k", value: None, stamp: None });
            Ok(())
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.says.send("ended");
        }
    }

    /// A slow one, what it says, and what it is told by.
    fn slow(interest: &Interest) -> (Impatient, Receiver<&'static str>, Sender<()>) {
        let ((says, said), (tell, told)) = (channel(), channel());
        (Impatient::new(Box::new(Slow { says, told }), interest.stop()), said, tell)
    }

    #[test]
    fn answers_and_records_are_those_of_the_reader() {
        let interest = Interest::default();
        let (mut reader, said, tell) = slow(&interest);
        (0..2).for_each(|_| tell.send(()).expect("it listens"));
        assert_eq!(reader.committed(&[InputPartition { input: 0, partition: 3 }]), Ok(vec![None]));
        assert_eq!(reader.look_up_again(), Ok(()));
        assert_eq!(reader.log_bounds(Log::Changelog, 3), Ok((Offset(0), Offset(3))));
        let mut seen = Vec::new();
        let read = reader.read_log(Log::Changelog, 3, (Offset(2), Offset(3)), &mut |record| {
            seen.push(record.offset);
            true
        });
        assert_eq!((read, seen), (Ok(()), vec![Offset(2)]));
        drop(reader);
        assert_eq!(said.iter().collect::<Vec<_>>(), ["asked", "asked", "ended"]);
    }

    #[test]
    fn a_question_that_nobody_wants_the_answer_of_is_left_alone_and_the_reader_ends_with_it() {
        let interest = Interest::default();
        let (mut reader, said, tell) = slow(&interest);
        let asking = std::thread::spawn(move || {
            let first = reader.log_bounds(Log::Changelog, 3);
            (first, reader.committed(&[]))
        });
        assert_eq!(said.recv(), Ok("asked"));
        drop(interest);
        let stopped = (Err(SourceError::Stopped), Err(SourceError::Stopped));
        assert_eq!(asking.join().expect("no panic"), stopped);
        assert!(said.try_recv().is_err(), "nobody has told it anything");
        tell.send(()).expect("it listens");
        assert_eq!(said.recv(), Ok("ended"));
    }
}
