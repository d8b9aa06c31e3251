//! The one recovery rule: from whatever is on disk and in Kafka to a task's start, or to a sentence
//! that says why there can be none.
