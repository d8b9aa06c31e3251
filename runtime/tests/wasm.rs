//! The handler host against real guests: an honest one, and one that misbehaves on command.
//!
//! Every limit is shown twice: the call that breaks it fails with the right fault, within a bounded
//! time, and the next record runs on a fresh instance as if nothing had happened.

use std::time::{Duration, Instant};

use tidemill::config::deployment::Limits;
use tidemill::effects::{Effects, Fault, Order, Prefetched, Status};
use tidemill::ports::Handler;
use tidemill::record::{Batch, Column};
use tidemill::store::View;
use tidemill::telemetry::Telemetry;
use tidemill::wasm::{Compiler, Linked, MODULE_BYTES_MAX, Module, ModuleError, WasmHandler};
use tidemill_test_support::build_guest;

/// No single call of a test may take longer, however loaded the machine is.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        memory_bytes: 16 << 20,
        batch_time: Duration::from_millis(200),
        emit_bytes: 1 << 20,
        emit_records: 1_000,
        table_elements: 10_000,
        ..Limits::default()
    }
}

/// A handler and the state of its task.
struct Task {
    handler: WasmHandler,
    view: View,
    next_offset: i64,
}

impl Task {
    fn new(guest: &str, limits: &Limits) -> Task {
        let module = Module::load(&build_guest(guest)).expect("the guest loads");
        let linked = Linked::new(&module, "test", &serde_json::Value::Null, limits).expect("it links");
        let handler = linked.instantiate(0).expect("it starts");
        Task { handler, view: View::default(), next_offset: 0 }
    }

    fn hostile() -> Task {
        Task::new("tests/guests/hostile", &limits())
    }

    /// One batch of records, each a key and a value.
    fn handle(&mut self, order: Order, records: &[(&str, &str)]) -> Result<Effects, Fault> {
        let mut batch = Batch::default();
        for (key, value) in records {
            batch.offsets.push(self.next_offset);
            batch.timestamps.push(1_000 + self.next_offset);
            batch.keys.push(Some(key.as_bytes()));
            batch.values.push(Some(value.as_bytes()));
            self.next_offset += 1;
        }
        let start = Instant::now();
        let result = self.handler.handle(&batch, order, Prefetched::default(), &mut self.view);
        assert!(start.elapsed() < CALL_TIME_MAX, "{records:?} took {:?}", start.elapsed());
        result
    }

    /// One record on its own.
    fn tell(&mut self, command: &str) -> Result<Effects, Fault> {
        self.handle(Order::Key, &[("k", command)])
    }

    /// The command ends in a fault, and the next record runs on a fresh instance.
    fn fault(&mut self, command: &str) -> Fault {
        assert_eq!(self.emitted("remember"), ["remembered=1"], "the instance is fresh");
        let fault = self.tell(command).expect_err(command);
        assert_eq!(self.emitted("remember"), ["remembered=1"], "a fresh instance after {command}");
        // So that the next command begins on a fresh instance too.
        self.handler.renew().expect("a new instance");
        fault
    }

    fn emitted(&mut self, command: &str) -> Vec<String> {
        let effects = self.tell(command).expect(command);
        rows(&effects.emissions.keys, &effects.emissions.values)
    }
}

fn rows(keys: &Column, values: &Column) -> Vec<String> {
    let show = |row: Option<&[u8]>| String::from_utf8_lossy(row.unwrap_or(b"null")).into_owned();
    keys.iter().zip(values.iter()).map(|(key, value)| format!("{}={}", show(key), show(value))).collect()
}

fn reasons(effects: &Effects) -> Vec<String> {
    let show = |row: Option<&[u8]>| String::from_utf8_lossy(row.unwrap_or_default()).into_owned();
    effects.reasons.iter().map(show).collect()
}

#[test]
fn a_plugin_counts_with_prefetched_state_and_its_writes_come_back() {
    let module = Module::load(&build_guest("plugins/count")).expect("the plugin loads");
    assert_eq!(module.manifest().inputs, ["in"]);
    assert!(module.manifest().stores[0].prefetch && !module.manifest().wants_headers);
    assert_eq!(module.digest().len(), 64);

    let linked = Linked::new(&module, "count", &serde_json::json!({}), &limits()).expect("it links");
    let mut handler = linked.instantiate(3).expect("it starts");
    let mut batch =
        Batch { partition: 3, offsets: vec![7, 8, 9], timestamps: vec![1, 2, -1], ..Batch::default() };
    for key in ["a", "b", "a"] {
        batch.keys.push(Some(key.as_bytes()));
        batch.values.push(None);
    }
    let mut prefetched = Prefetched { stores: vec![0, 0], ..Prefetched::default() };
    prefetched.keys.push(Some(b"a"));
    prefetched.values.push(Some(&41u64.to_le_bytes()));
    prefetched.keys.push(Some(b"b"));
    prefetched.values.push(None);

    let effects = handler.handle(&batch, Order::Key, prefetched, &mut View::default()).expect("it runs");
    assert_eq!(rows(&effects.emissions.keys, &effects.emissions.values), ["a=42", "b=1", "a=43"]);
    assert_eq!(effects.emissions.timestamps, [1, 2, -1], "the records' own, and none stays none");
    assert_eq!(effects.emissions.partitions, [-1; 3]);
    assert_eq!(effects.writes.sources, [0, 1, 2]);
    assert_eq!(effects.writes.values.row(2), Some(&43u64.to_le_bytes()[..]));
    assert_eq!(effects.statuses, [Status::Ok; 3]);
}

#[test]
fn a_configuration_that_nothing_reads_is_refused_at_the_start() {
    let module = Module::load(&build_guest("plugins/count")).expect("the plugin loads");
    let error =
        Linked::new(&module, "count", &serde_json::json!({"colum": 1}), &limits()).expect_err("refused");
    assert_eq!(error, ModuleError::Config("config: this handler takes none".into()));
}

#[test]
fn a_record_that_runs_again_draws_the_same_random_numbers() {
    let mut task = Task::hostile();
    let first = task.emitted("random");
    assert_ne!(task.emitted("random"), first, "another record, other numbers");
    task.handler.renew().expect("a new instance");
    task.next_offset = 0;
    assert_eq!(task.emitted("random"), first);
}

#[test]
fn an_endless_loop_ends_when_its_cpu_time_is_used_up() {
    assert_eq!(Task::hostile().fault("loop"), Fault::Timeout { limit_ms: 200 });
}

#[test]
fn a_batch_has_the_time_of_all_its_records() {
    let mut task =
        Task::new("tests/guests/hostile", &Limits { batch_time: Duration::from_millis(100), ..limits() });
    // One record alone is slow, in company it is not: 100 records have 10 s of CPU time together.
    let mut records = vec![("slow", "spin 400")];
    records.resize(100, ("k", "ok"));
    let effects = task.handle(Order::Key, &records).expect("there is time enough");
    assert_eq!(effects.emissions.len(), 99);
    if task.handler.used() > Duration::from_millis(200) {
        assert_eq!(task.tell("spin 400").expect_err("too slow alone"), Fault::Timeout { limit_ms: 100 });
    }
}

#[test]
fn a_loop_in_company_costs_a_second_and_not_the_time_of_all() {
    let mut task = Task::hostile();
    let mut records = vec![("k", "ok"); 100];
    records[50] = ("k", "loop");
    let fault = task.handle(Order::Key, &records).expect_err("it does not end");
    assert_eq!(fault, Fault::Timeout { limit_ms: 200 });
    let used = task.handler.used();
    assert!(used > Duration::from_millis(900) && used < Duration::from_secs(3), "{used:?}");
}

#[test]
fn a_stop_ends_the_call_in_progress_and_every_later_one() {
    let module = Module::load(&build_guest("tests/guests/hostile")).expect("the guest loads");
    let limits = Limits { batch_time: CALL_TIME_MAX, ..limits() };
    let linked = Linked::new(&module, "test", &serde_json::Value::Null, &limits).expect("it links");
    let handler = linked.instantiate(0).expect("it starts");
    let mut task = Task { handler, view: View::default(), next_offset: 0 };
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| task.tell("loop").expect_err("it does not end by itself"));
        linked.interrupt_in(Duration::ZERO);
        assert_eq!(looping.join().expect("no panic"), Fault::Interrupted);
    });
    assert!(task.tell("ok").is_err());
}

#[test]
fn memory_ends_at_the_limit_and_the_fault_says_so() {
    let mut task = Task::hostile();
    task.tell("alloc 4").expect("within the limit");
    task.handler.renew().expect("a new instance");
    let fault = task.fault("alloc 64");
    assert!(matches!(&fault, Fault::Limit(what) if what.starts_with("memory: ")), "{fault}");
}

#[test]
fn a_guest_that_can_do_without_more_memory_goes_on() {
    let mut task = Task::hostile();
    assert_eq!(task.emitted("ask 4"), ["asked=granted"]);
    assert_eq!(task.emitted("ask 64"), ["asked=refused"]);
    assert_eq!(task.emitted("remember"), ["remembered=1"]);
    assert_eq!(task.emitted("remember"), ["remembered=2"], "it is the same instance");
}

#[test]
fn recursion_panics_and_divisions_by_zero_trap() {
    let mut task = Task::hostile();
    let fault = task.fault("recurse");
    assert!(matches!(&fault, Fault::Trap(what) if what.contains("stack")), "{fault}");
    let fault = task.fault("panic");
    assert!(
        matches!(&fault, Fault::Trap(what) if what.contains("src/lib.rs") && what.contains("as told")),
        "{fault}"
    );
    let fault = task.fault("divide");
    assert!(matches!(&fault, Fault::Trap(what) if what.contains("divide by zero")), "{fault}");
}

#[test]
fn a_record_emits_no_more_rows_and_bytes_than_its_share() {
    let mut task = Task::hostile();
    assert_eq!(task.tell("emit 1000").expect("as many as allowed").emissions.len(), 1000);
    task.handler.renew().expect("a new instance");
    for (command, what) in [
        ("emit 1001", "more than 1000 emissions"),
        ("emit 100000", "more than"),
        ("big 1048577", "1048578 emitted and written bytes"),
        ("big 4000000", "more than all its records may emit together"),
    ] {
        let fault = task.fault(command);
        assert!(matches!(&fault, Fault::Limit(found) if found.contains(what)), "{command}: {fault}");
    }
}

#[test]
fn what_the_store_refuses_is_the_records_fault_and_not_the_stores() {
    // The limit of time is not what this is about: 65 MiB take a while on a busy machine.
    let (memory_bytes, emit_bytes, batch_time) = (512 << 20, 512 << 20, CALL_TIME_MAX);
    let limits = Limits { memory_bytes, emit_bytes, batch_time, ..limits() };
    let fault = Task::new("tests/guests/hostile", &limits).fault("hand-over 65");
    assert!(matches!(&fault, Fault::Limit(reason) if reason.contains("put-many takes at most")), "{fault:?}");
}

#[test]
fn a_log_flood_neither_fills_the_log_nor_ends_the_record() {
    let mut task = Task::hostile();
    assert_eq!(task.tell("log 10000").expect("logging is no fault").statuses, [Status::Ok]);
}

#[test]
fn a_line_longer_than_all_that_a_record_may_emit_is_cut_and_no_fault() {
    let mut task = Task::hostile();
    assert_eq!(task.tell("line 2").expect("logging is no fault").statuses, [Status::Ok]);
}

#[test]
fn a_batch_larger_than_an_eighth_of_the_memory_is_refused_without_a_call() {
    let mut task = Task::hostile();
    let value = "x".repeat(2 << 20);
    let fault = task.tell(&value).expect_err("too large");
    assert!(matches!(&fault, Fault::Limit(what) if what.contains("an eighth")), "{fault}");
    assert_eq!(task.emitted("ok"), ["k=ok"]);
}

#[test]
fn later_records_of_a_failed_key_are_held_back_as_the_order_says() {
    let mut task = Task::hostile();
    let records =
        [("a", "ok"), ("b", "transient"), ("b", "ok"), ("a", "permanent"), ("c", "ok"), ("a", "ok")];
    use Status::{Blocked, Ok, Permanent, Transient};

    let effects = task.handle(Order::Key, &records).expect("it runs");
    assert_eq!(effects.statuses, [Ok, Transient, Blocked, Permanent, Ok, Blocked]);
    assert_eq!(rows(&effects.emissions.keys, &effects.emissions.values), ["a=ok", "c=ok"]);
    assert_eq!(reasons(&effects)[1], "try again");

    let effects = task.handle(Order::All, &records).expect("it runs");
    assert_eq!(effects.statuses, [Ok, Transient, Blocked, Blocked, Blocked, Blocked]);
    let effects = task.handle(Order::None, &records).expect("it runs");
    assert_eq!(effects.statuses, [Ok, Transient, Ok, Permanent, Ok, Ok]);
}

#[test]
fn a_scan_sees_earlier_writes_of_the_call_but_none_of_a_failed_record() {
    let mut task = Task::hostile();
    let records =
        [("k1", "put x"), ("k2", "scan-then-fail y"), ("k3", "count"), ("k4", "put z"), ("k5", "count")];
    let effects = task.handle(Order::Key, &records).expect("it runs");
    assert_eq!(rows(&effects.emissions.keys, &effects.emissions.values), ["count=1", "count=2"]);
}

#[test]
fn lies_are_refused_whole_and_the_next_record_runs() {
    let mut task = Task::new("tests/guests/liar", &limits());
    let honest = |task: &mut Task| task.tell("nothing").expect("no lie").emissions.len();
    assert_eq!(honest(&mut task), 1);
    for (lie, what) in [
        ("lengths", "`emit.key`: lengths sum to"),
        ("negative", "`write.value`: length -2"),
        ("rows", "`emit.timestamp` has 2 rows"),
        ("source", "names record 1 of 1"),
        ("output", "names output 1"),
        ("store", "store 1 is not in the manifest"),
        ("partition", "names partition -2147483648"),
        ("status", "unknown status 77"),
        ("statuses", "`status` has 2 rows"),
        ("held-back", "held back, but no earlier record"),
        ("headers", "headers of emission 0"),
        ("outside", "out of bounds"),
        ("get", "store 9 is not in the manifest"),
        ("scan", "store 9 is not in the manifest"),
        ("put-many", "store 9 is not in the manifest"),
        ("put-many-source", "names record 9 of 1"),
    ] {
        let fault = task.tell(lie).expect_err(lie);
        assert!(matches!(&fault, Fault::Trap(found) if found.contains(what)), "{lie}: {fault}");
        assert_eq!(honest(&mut task), 1, "after {lie}");
    }
    let fault = task.tell("reason").expect_err("too long");
    assert!(matches!(&fault, Fault::Limit(found) if found.contains("a reason of 2000 bytes")), "{fault}");
}

#[test]
fn a_start_hands_no_writes_over_that_its_instance_would_keep_for_good() {
    let module = Module::load(&build_guest("tests/guests/liar")).expect("the guest loads");
    let refusal =
        Linked::new(&module, "test", &serde_json::json!("put-many"), &limits()).expect_err("refused");
    let expected = "put-many outside of `handle`";
    assert!(matches!(&refusal, ModuleError::Start(found) if found.contains(expected)), "{refusal}");
}

#[test]
fn a_result_that_multiplies_itself_is_refused_before_it_is_copied() {
    // Its share would allow it, the memory that it can honestly fill does not.
    let mut task = Task::new("tests/guests/liar", &Limits { emit_bytes: 1 << 30, ..limits() });
    let fault = task.tell("multiply").expect_err("three times 6 MiB out of 16 MiB of memory");
    assert!(matches!(&fault, Fault::Limit(found) if found.contains("emit together")), "{fault}");
    assert_eq!(task.tell("nothing").expect("no lie").emissions.len(), 1);
}

#[test]
fn what_is_no_handler_is_refused_with_a_message_of_its_own() {
    assert_eq!(Module::load(b"#!/bin/sh\n").expect_err("no Wasm"), ModuleError::NotWasm);
    assert_eq!(Module::load(b"").expect_err("nothing"), ModuleError::NotWasm);
    let large = vec![0; MODULE_BYTES_MAX + 1];
    assert!(matches!(Module::load(&large), Err(ModuleError::TooLarge { .. })));
    let exports = ["describe", "init", "handle"].map(ModuleError::MissingExport);
    for empty in [b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"] {
        assert_eq!(Module::load(empty).expect_err("no exports").into_problems(), exports);
    }
    // All at once: what it wants and may not have, and what it lacks.
    let wasi = component_importing("wasi:cli/environment@0.2.0");
    let problems = Module::load(&wasi).expect_err("WASI").into_problems();
    assert_eq!(problems[0], ModuleError::ForbiddenImport("wasi:cli/environment@0.2.0".into()));
    assert_eq!(problems[1..], exports);
    let newer = component_importing("tidemill:handler/state@0.2.0");
    let problems = Module::load(&newer).expect_err("another version").into_problems();
    assert_eq!(problems[0], ModuleError::WrongVersion { found: "tidemill:handler/state@0.2.0".into() });
    let said = problems[0].to_string();
    assert!(said.contains("this node speaks tidemill:handler@0.1.0"), "{said}");
    for (module, what) in [
        (functions(20_001, 1), "20001 functions, 20000 are allowed"),
        (functions(1, 1 << 20), "bytes of code, 1048576 are allowed"),
        (exporting(501), "501 exports, 500 are allowed"),
    ] {
        let said = Module::load(&module).expect_err(what).to_string();
        assert!(said.contains(what), "{said}");
    }
    let error = Module::load(&core_importing_wasi()).expect_err("WASI").to_string();
    assert!(error.contains("wasi_snapshot_preview1"), "{error}");
    for (memory, what) in [(&[4, 1][..], "memory64"), (&[3, 1, 1], "threads")] {
        let problems = Module::load(&component_with_memory(memory)).expect_err(what).into_problems();
        let is_named =
            |error: &ModuleError| matches!(error, ModuleError::Invalid(said) if said.contains(what));
        assert!(problems.iter().any(is_named), "{what}: {problems:?}");
    }
    let mut cut = build_guest("bench/pass").to_vec();
    cut.truncate(cut.len() / 2);
    let problems = Module::load(&cut).expect_err("cut").into_problems();
    assert!(problems.iter().any(|error| matches!(error, ModuleError::Invalid(_))), "{problems:?}");
}

#[test]
fn a_module_is_compiled_once_in_a_process_of_its_own_and_altered_code_never_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let guest = build_guest("bench/pass");
    let compiler =
        |program: &str| Compiler::apart(program.into(), dir.path(), Telemetry::new()).expect("a compiler");
    let tidemill = || compiler(env!("CARGO_BIN_EXE_tidemill"));
    let module = Module::load_with(&tidemill(), &guest).expect("compiled apart");
    // Whatever is found on disk now serves without a compiler.
    let cached = Module::load_with(&compiler("/bin/false"), &guest).expect("from the cache");
    assert_eq!((cached.digest(), cached.manifest()), (module.digest(), module.manifest()));

    let code = std::fs::read_dir(dir.path()).expect("the cache").map(|entry| entry.expect("an entry").path());
    let code = code.into_iter().find(|path| path.extension().is_some_and(|e| e == "cwasm")).expect("code");
    let mut altered = std::fs::read(&code).expect("readable");
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    std::fs::write(&code, altered).expect("writable");
    let refused = Module::load_with(&compiler("/bin/false"), &guest).expect_err("not what was compiled");
    assert!(matches!(refused, ModuleError::Engine(_)), "{refused}");
    Module::load_with(&tidemill(), &guest).expect("compiled again");
    Module::load_with(&compiler("/bin/false"), &guest).expect("and kept again");

    assert_eq!(Module::load_with(&tidemill(), b"#!/bin/sh\n").expect_err("no Wasm"), ModuleError::NotWasm);
    let error = Module::load_with(&tidemill(), &core_importing_wasi()).expect_err("WASI").to_string();
    assert!(error.contains("wasi_snapshot_preview1"), "{error}");
}

#[test]
fn a_module_is_loaded_once_for_all_who_have_it_and_for_a_while_after() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_tidemill").into();
    let telemetry = Telemetry::new();
    let compiler = Compiler::apart(program, dir.path(), telemetry.clone()).expect("a compiler");
    let load = |guest: &[u8]| Module::load_with(&compiler, guest).expect("it loads");
    let pass = build_guest("bench/pass");
    let module = load(&pass);
    // Whatever becomes of the files: nothing is read.
    std::fs::remove_dir_all(dir.path()).expect("they go");
    std::fs::create_dir(dir.path()).expect("an empty directory");
    load(&pass);
    drop(module);
    let digest = load(&pass).digest().to_owned();
    assert_eq!(telemetry.node.modules_compiled.get(), 1);
    assert!(Module::loaded(&compiler, &digest).is_some(), "nobody has it");
}

#[test]
fn a_module_that_takes_too_long_to_compile_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_tidemill").into();
    let compiler = Compiler::apart(program, dir.path(), Telemetry::new()).expect("a compiler");
    let error = Module::load_with(&compiler, &compile_bomb()).expect_err("a bomb");
    // A machine with other work may not give it as much CPU time in the time that it has.
    assert!(matches!(error, ModuleError::TooExpensive | ModuleError::TooSlow), "{error}");
    Module::load_with(&compiler, &build_guest("bench/pass")).expect("the next one is compiled");
}

/// A component around a core module of many functions, each a long run of nested blocks.
fn compile_bomb() -> Vec<u8> {
    let body = {
        let mut code = vec![1, 1, 0x7e]; // One local, an i64.
        for _ in 0..600 {
            // local 0 = local 0 * local 0 + 1; if it is not zero, again.
            code.extend([
                0x03, 0x40, 0x20, 0, 0x20, 0, 0x7e, 0x42, 1, 0x7c, 0x22, 0, 0x50, 0x45, 0x0d, 0, 0x0b,
            ]);
        }
        code.push(0x0b);
        code
    };
    let mut bomb = in_component(&core_with_functions(1_000, &body));
    // What a handler exports, by name only: the compiler comes before the types.
    let mut exports = leb(3);
    for name in ["describe", "init", "handle"] {
        exports.extend([0, name.len() as u8]);
        exports.extend(name.as_bytes());
        exports.extend([0x00, 0x11, 0, 0]); // The core module, of no declared type.
    }
    bomb.push(11);
    bomb.extend(leb(exports.len()));
    bomb.extend(exports);
    bomb
}

/// A component around so many functions that do nothing, in so many bytes each.
fn functions(count: usize, bytes: usize) -> Vec<u8> {
    let mut body = vec![0]; // No locals.
    body.extend(std::iter::repeat_n(0x01, bytes));
    body.push(0x0b);
    in_component(&core_with_functions(count, &body))
}

/// A component around a module that exports its one function under so many names.
fn exporting(count: usize) -> Vec<u8> {
    let mut core = core_with_functions(1, &[0, 0x0b]);
    let code = core.split_off(core.len() - 6);
    let mut exports = leb(count);
    for number in 0..count {
        let name = format!("{number:03}");
        exports.push(3);
        exports.extend(name.as_bytes());
        exports.extend([0, 0]);
    }
    core.push(7);
    core.extend(leb(exports.len()));
    core.extend(exports);
    core.extend(code);
    in_component(&core)
}

fn core_with_functions(count: usize, body: &[u8]) -> Vec<u8> {
    let mut functions = leb(count);
    functions.extend(std::iter::repeat_n(0, count));
    let mut bodies = leb(count);
    for _ in 0..count {
        bodies.extend(leb(body.len()));
        bodies.extend(body);
    }
    let mut core = b"\0asm\x01\0\0\0".to_vec();
    for (section, content) in [(1, vec![1, 0x60, 0, 0]), (3, functions), (10, bodies)] {
        core.push(section);
        core.extend(leb(content.len()));
        core.extend(content);
    }
    core
}

fn in_component(core: &[u8]) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.push(1);
    bytes.extend(leb(core.len()));
    bytes.extend(core);
    bytes
}

/// Unsigned LEB128.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A component that imports an empty instance of that name, and nothing else.
fn component_importing(name: &str) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend([7, 3, 1, 0x42, 0]); // One type: an instance without exports.
    let len = name.len() as u8;
    bytes.extend([10, len + 5, 1, 0, len]); // One import of that type.
    bytes.extend(name.as_bytes());
    bytes.extend([5, 0]);
    bytes
}

/// A component around a core module with one memory of that type.
fn component_with_memory(memory: &[u8]) -> Vec<u8> {
    let mut core = b"\0asm\x01\0\0\0".to_vec();
    core.extend([5, memory.len() as u8 + 1, 1]);
    core.extend(memory);
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend([1, core.len() as u8]);
    bytes.extend(core);
    bytes
}

/// A core module that imports `fd_write`, as any program built for WASI does.
fn core_importing_wasi() -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    bytes.extend([1, 4, 1, 0x60, 0, 0]); // One type: a function without parameters.
    let (module, field) = ("wasi_snapshot_preview1", "fd_write");
    bytes.extend([2, (module.len() + field.len() + 5) as u8, 1, module.len() as u8]);
    bytes.extend(module.as_bytes());
    bytes.push(field.len() as u8);
    bytes.extend(field.as_bytes());
    bytes.extend([0, 0]);
    bytes
}
