//! A module bound to a deployment, and the instances that run for its tasks.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Func, InstancePre};
use wasmtime::{Store, Trap, UpdateDeadline, WasmBacktrace};

use super::abi::{Order as RawOrder, PrefetchedRef, RawEffects, RecordsRef};
use super::check::{self, Terms};
use super::clock::{Allowance, Interrupt, thread_cpu_time};
use super::engine::Engine;
use super::guest_log::{GuestLog, LogRate};
use super::imports::{HostError, HostState};
use super::limits;
use super::{Module, ModuleError};
use crate::config::deployment::Limits;
use crate::config::manifest::Manifest;
use crate::effects::{Effects, Fault, Order, Prefetched};
use crate::ports::Handler;
use crate::record::{Batch, Column};
use crate::store::{StoreError, View};
use crate::telemetry::{LogRing, Telemetry};

/// CPU time of a call with several records, unless one of them alone may take longer. What is slow in
/// company is tried again record by record, each with its own limit.
const COMPANY_TIME_MAX: Duration = Duration::from_secs(1);

/// CPU time for `init`, which may parse a large configuration.
const INIT_TIME_MAX: Duration = Duration::from_secs(2);

/// Guest frames named in the reason of a trap.
const TRAP_FRAMES_MAX: usize = 3;

/// A module with a deployment's configuration and limits: everything that its tasks share.
#[derive(Debug, Clone)]
pub struct Linked {
    module: Module,
    deployment: Arc<str>,
    /// JSON.
    config: Arc<[u8]>,
    limits: Limits,
    interrupt: Interrupt,
    /// Where its tasks' lines are kept.
    logs: Option<Arc<LogRing>>,
    log: Arc<LogRate>,
    /// Where its tasks are counted, if anywhere.
    telemetry: Option<Arc<Telemetry>>,
}

impl Linked {
    /// Binds a module, and starts one instance to see that the handler accepts the configuration.
    pub fn new(
        module: &Module,
        deployment: &str,
        config: &serde_json::Value,
        limits: &Limits,
    ) -> Result<Linked, ModuleError> {
        let linked = Linked {
            module: module.clone(),
            deployment: deployment.into(),
            config: config.to_string().into_bytes().into(),
            limits: limits.clone(),
            interrupt: Interrupt::default(),
            logs: None,
            log: Arc::new(LogRate::new(limits.log_lines)),
            telemetry: None,
        };
        linked.start(0)?;
        Ok(linked)
    }

    /// Keeps what its instances log there.
    pub fn logging_to(self, logs: Arc<LogRing>) -> Linked {
        Linked { logs: Some(logs), ..self }
    }

    /// Counts there what its instances do.
    pub fn counting(self, telemetry: &Arc<Telemetry>) -> Linked {
        Linked { telemetry: Some(Arc::clone(telemetry)), ..self }
    }

    pub fn manifest(&self) -> &Manifest {
        self.module.manifest()
    }

    /// Ends the calls in progress of all its instances, and every later one, after a moment: their deployment
    /// stops or goes on in another revision, and need not wait until a handler is done.
    pub fn interrupt_in(&self, patience: Duration) {
        self.interrupt.raise_in(patience);
    }

    /// An instance for the task of that partition.
    pub fn instantiate(&self, partition: i32) -> Result<WasmHandler, ModuleError> {
        let instance = Some(self.start(partition)?);
        let used = Duration::ZERO;
        Ok(WasmHandler { linked: self.clone(), partition, instance, inputs: Vec::new(), used })
    }

    fn start(&self, partition: i32) -> Result<Instance, ModuleError> {
        let manifest = self.module.manifest();
        let stores = manifest.stores.len() as u16;
        let metrics = self.telemetry.as_ref().map(|telemetry| telemetry.task(&self.deployment, partition));
        let log = GuestLog::new(self.deployment.clone(), partition, Arc::clone(&self.log), metrics)
            .kept_in(self.logs.clone());
        let mut host = HostState::new(&self.limits, stores, log);
        host.interrupt = self.interrupt.clone();
        let mut instance = Instance::start(self.module.engine(), self.module.pre(), host)?;
        match instance.init(&self.config) {
            Ok(Ok(())) => Ok(instance),
            Ok(Err(reason)) => Err(ModuleError::Config(reason)),
            Err(fault) => Err(ModuleError::Start(fault.to_string())),
        }
    }
}

/// The handler of one task.
pub struct WasmHandler {
    linked: Linked,
    partition: i32,
    /// None after a fresh instance could not be started; the next call tries again.
    instance: Option<Instance>,
    /// The batch's input, once per record, as the ABI wants it.
    inputs: Vec<u16>,
    /// CPU time of the last call or renewal.
    used: Duration,
}

impl Handler for WasmHandler {
    fn handle(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault> {
        let began = thread_cpu_time();
        let result = self.run(batch, order, prefetched, state);
        self.used = thread_cpu_time().saturating_sub(began);
        result
    }

    fn renew(&mut self) -> Result<(), Fault> {
        let began = thread_cpu_time();
        self.instance = None;
        let fresh = self.fresh();
        self.used = thread_cpu_time().saturating_sub(began);
        self.instance = Some(fresh?);
        Ok(())
    }

    fn used(&self) -> Duration {
        self.used
    }
}

impl WasmHandler {
    fn run(
        &mut self,
        batch: &Batch,
        order: Order,
        prefetched: Prefetched,
        state: &mut View,
    ) -> Result<Effects, Fault> {
        // A short call would be over before the guest is looked at.
        if self.linked.interrupt.is_raised() {
            return Err(Fault::Interrupted);
        }
        let max = limits::batch_bytes_max(&self.linked.limits);
        if batch.bytes() > max {
            let bytes = batch.bytes();
            return Err(Fault::Limit(format!(
                "a batch of {bytes} bytes; an eighth of the handler's memory, {max}, is allowed"
            )));
        }
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        self.inputs.clear();
        self.inputs.resize(batch.len(), batch.input);
        let manifest = self.linked.manifest();
        let no_headers = Column::default();
        let records = RecordsRef {
            input: &self.inputs,
            partition: batch.partition,
            offset: &batch.offsets,
            timestamp: &batch.timestamps,
            key: (&batch.keys).into(),
            value: (&batch.values).into(),
            headers: if manifest.wants_headers { &batch.headers } else { &no_headers }.into(),
            order: match order {
                Order::Key => RawOrder::Key,
                Order::All => RawOrder::All,
                Order::None => RawOrder::None,
            },
        };
        let rows = PrefetchedRef {
            store: &prefetched.stores,
            key: (&prefetched.keys).into(),
            value: (&prefetched.values).into(),
        };
        let terms = Terms {
            batch,
            order,
            limits: &self.linked.limits,
            outputs: manifest.outputs.len() as u16,
            stores: manifest.stores.len() as u16,
        };

        // Lent by exchange: the instance has an empty view in between.
        std::mem::swap(state, &mut instance.store.data_mut().view);
        let result = instance.handle(records, rows, &terms);
        std::mem::swap(state, &mut instance.store.data_mut().view);

        match result {
            Ok(_) => self.instance = Some(instance),
            Err(_) => {
                drop(instance);
                // Should it fail to start, the next call tries again and says why.
                self.instance = self.fresh().ok();
            }
        }
        result
    }

    fn fresh(&self) -> Result<Instance, Fault> {
        self.linked.start(self.partition).map_err(|error| match self.linked.interrupt.is_raised() {
            // Whatever else it was: nobody asks for this instance any more.
            true => Fault::Interrupted,
            false => Fault::Start(error.to_string()),
        })
    }
}

/// One instance and the store it lives in. After a fault it is dropped, never called again.
pub struct Instance {
    engine: &'static Engine,
    store: Store<HostState>,
    describe: Func,
    init: Func,
    handle: Func,
}

impl Instance {
    pub fn start(
        engine: &'static Engine,
        pre: &InstancePre<HostState>,
        host: HostState,
    ) -> Result<Instance, ModuleError> {
        let mut store = Store::new(&engine.wasmtime, host);
        store.limiter(|host| &mut host.limiter);
        store.epoch_deadline_callback(|ctx| {
            if ctx.data().interrupt.is_raised() {
                return Err(HostError::Interrupted.into());
            }
            if ctx.data().allowance.is_used_up() {
                return Err(HostError::Time.into());
            }
            Ok(UpdateDeadline::Continue(1))
        });
        let _running = engine.run();
        store.set_epoch_deadline(1);
        store.data_mut().allowance = Allowance::start(INIT_TIME_MAX);
        let instance = match pre.instantiate(&mut store) {
            Ok(instance) => instance,
            Err(error) => {
                let fault = fault(&mut store, &error, INIT_TIME_MAX);
                return Err(ModuleError::Start(fault.to_string()));
            }
        };
        let mut export = |name| instance.get_func(&mut store, name).ok_or(ModuleError::MissingExport(name));
        let (describe, init, handle) = (export("describe")?, export("init")?, export("handle")?);
        let checked = describe
            .typed::<(), (Vec<u8>,)>(&store)
            .and_then(|_| init.typed::<(&[u8],), (Result<(), String>,)>(&store))
            .and_then(|_| handle.typed::<(RecordsRef<'_>, PrefetchedRef<'_>), (RawEffects,)>(&store));
        checked.map_err(|error| ModuleError::WrongType(format!("{error:#}")))?;
        Ok(Instance { engine, store, describe, init, handle })
    }

    /// The manifest's JSON.
    pub fn describe(&mut self) -> Result<Vec<u8>, Fault> {
        let (describe, time) = (self.describe, self.store.data().limits.batch_time);
        self.call(time, 1, time, |store| {
            let (json,) = describe.typed::<(), (Vec<u8>,)>(&store)?.call(store, ())?;
            Ok(json)
        })
    }

    /// The inner error is the handler's own refusal of its configuration.
    pub fn init(&mut self, config: &[u8]) -> Result<Result<(), String>, Fault> {
        let init = self.init;
        self.call(INIT_TIME_MAX, 1, INIT_TIME_MAX, |store| {
            let (result,) = init.typed::<(&[u8],), (Result<(), String>,)>(&store)?.call(store, (config,))?;
            Ok(result)
        })
    }

    fn handle(
        &mut self,
        records: RecordsRef<'_>,
        prefetched: PrefetchedRef<'_>,
        terms: &Terms<'_>,
    ) -> Result<Effects, Fault> {
        let (handle, count) = (self.handle, terms.batch.len());
        let handed = &mut self.store.data_mut().handed_bytes;
        handed.clear();
        handed.resize(count, 0);
        let one = terms.limits.batch_time;
        let sum = one.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX).max(1));
        let all = sum.min(one.max(COMPANY_TIME_MAX));
        let raw = self.call(all, count, one, |store| {
            type Parameters<'a> = (RecordsRef<'a>, PrefetchedRef<'a>);
            let typed = handle.typed::<Parameters<'_>, (RawEffects,)>(&store)?;
            let (raw,) = typed.call(store, (records, prefetched))?;
            Ok(raw)
        })?;
        let bytes = &mut self.store.data_mut().handed_bytes;
        check::effects(raw, terms, bytes).map_err(|refusal| refused(&refusal))
    }

    /// One call into the guest, with its CPU time and its output bounded. A time-out is reported as
    /// that of one record.
    fn call<R>(
        &mut self,
        time: Duration,
        records: usize,
        record_time: Duration,
        call: impl FnOnce(&mut Store<HostState>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let _running = self.engine.run();
        let output_max = limits::result_bytes_max(&self.store.data().limits, records);
        self.store.set_hostcall_fuel(output_max);
        self.store.set_epoch_deadline(1);
        let host = self.store.data_mut();
        host.log.begin_call();
        host.limiter.begin_call();
        host.allowance = Allowance::start(time);
        call(&mut self.store).map_err(|error| fault(&mut self.store, &error, record_time))
    }
}

/// Sorts what ended a guest's call.
fn fault(store: &mut Store<HostState>, error: &wasmtime::Error, record_time: Duration) -> Fault {
    match error.downcast_ref::<HostError>() {
        Some(HostError::Interrupted) => return Fault::Interrupted,
        Some(HostError::Time) => return Fault::Timeout { limit_ms: record_time.as_millis() as u64 },
        // The guest asked for what cannot be; the state is as sound as before.
        Some(HostError::Store(StoreError::Refused(reason))) => return Fault::Limit(reason.clone()),
        Some(HostError::Store(error)) => return Fault::Store(error.to_string()),
        Some(HostError::Refused(refusal)) => return refused(refusal),
        None => {}
    }
    let host = store.data_mut();
    if let Some(refused) = host.limiter.refused() {
        return Fault::Limit(refused.into());
    }
    let Some(trap) = error.downcast_ref::<Trap>() else {
        return unreadable(error);
    };
    // A panic's message and place come through the log; the trap knows only where it ended.
    if *trap == Trap::UnreachableCodeReached
        && let Some(last) = host.log.take_last_error()
    {
        return Fault::Trap(last);
    }
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let names = frames.iter().filter_map(|frame| frame.func_name()).take(TRAP_FRAMES_MAX);
    Fault::Trap(names.fold(trap.to_string(), |reason, name| format!("{reason} < {name}")))
}

/// The guest returned, but its result could not be taken out of its memory. wasmtime has no type for
/// the two reasons; the tests of results that are too large and that lie outside the memory hold the text.
fn unreadable(error: &wasmtime::Error) -> Fault {
    let text = format!("{error:#}");
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        return Fault::Limit("the handler returned more than all its records may emit together".into());
    }
    Fault::Trap(format!("what the handler returned breaks the ABI: {text}"))
}

fn refused(refusal: &check::Refusal) -> Fault {
    if refusal.is_limit() {
        Fault::Limit(refusal.to_string())
    } else {
        Fault::Trap(format!("what the handler returned breaks the ABI: {refusal}"))
    }
}
