//! Modules that no compiler would make, as bytes.

/// Section number in modules and components alike.
const CUSTOM: u8 = 0;
/// Section numbers of a core module.
const TYPES: u8 = 1;
const IMPORTS: u8 = 2;
const FUNCTIONS: u8 = 3;
const MEMORIES: u8 = 5;
const START: u8 = 8;
const CODE: u8 = 10;

/// A function without parameters and results.
const PLAIN_TYPE: [u8; 4] = [1, 0x60, 0, 0];

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

fn named(name: &str) -> Vec<u8> {
    [leb(name.len()), name.as_bytes().to_vec()].concat()
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], leb(content.len()), content.to_vec()].concat()
}

fn core(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    module.extend(sections.iter().flat_map(|(id, content)| section(*id, content)));
    module
}

/// A component of these sections.
fn component(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    bytes.extend(sections.iter().flat_map(|(id, content)| section(*id, content)));
    bytes
}

/// A component around a core module that nothing of it uses.
fn around(core: Vec<u8>) -> Vec<u8> {
    component(&[(1, core)])
}

/// A body of so many loops, each a multiplication, an addition and a branch.
fn body(loops: usize) -> Vec<u8> {
    let mut code = vec![1, 1, 0x7e]; // One local, an i64.
    for _ in 0..loops {
        code.extend([0x03, 0x40, 0x20, 0, 0x20, 0, 0x7e, 0x42, 1, 0x7c, 0x22, 0, 0x50, 0x45, 0x0d, 0, 0x0b]);
    }
    code.push(0x0b);
    [leb(code.len()), code].concat()
}

fn functions(count: usize, loops: usize) -> Vec<u8> {
    let declared = [leb(count), vec![0; count]].concat();
    let bodies = [leb(count), body(loops).repeat(count)].concat();
    let module = core(&[(TYPES, PLAIN_TYPE.to_vec()), (FUNCTIONS, declared), (CODE, bodies)]);
    // Exported under the names of a handler's functions, whose types only the compiled module shows: what
    // lacks a name is not compiled at all.
    let export = |name: &str| [vec![0], named(name), vec![0x00, 0x11, 0, 0]].concat();
    let exports: Vec<u8> = ["describe", "init", "handle"].iter().flat_map(|name| export(name)).collect();
    component(&[(1, module), (11, [vec![3], exports].concat())])
}

/// Five thousand functions, a quarter of what [`bomb`] has to compile: well within the limit also where the neighbour and
/// others take their part of the cores.
pub fn many_functions() -> Vec<u8> {
    functions(5_000, 30)
}

/// One function of several MiB.
pub fn huge_function() -> Vec<u8> {
    functions(1, 300_000)
}

/// Small to send, and more than ten seconds to compile.
pub fn bomb() -> Vec<u8> {
    functions(1_000, 600)
}

/// An import that handlers are not given.
pub fn wasi() -> Vec<u8> {
    importing("wasi:cli/environment@0.2.0")
}

/// Built for an ABI that comes later.
pub fn newer_abi() -> Vec<u8> {
    importing("tidemill:handler/state@0.2.0")
}

fn importing(name: &str) -> Vec<u8> {
    let instance_type = vec![1, 0x42, 0];
    component(&[(7, instance_type), (10, [vec![1, 0], named(name), vec![5, 0]].concat())])
}

/// A core module that imports what any program built for WASI does.
pub fn core_wasi() -> Vec<u8> {
    let import = [vec![1], named("wasi_snapshot_preview1"), named("fd_write"), vec![0, 0]].concat();
    core(&[(TYPES, PLAIN_TYPE.to_vec()), (IMPORTS, import)])
}

/// A memory of 64-bit addresses.
pub fn memory64() -> Vec<u8> {
    around(core(&[(MEMORIES, vec![1, 4, 1])]))
}

/// A memory that threads share.
pub fn shared_memory() -> Vec<u8> {
    around(core(&[(MEMORIES, vec![1, 3, 1, 1])]))
}

/// Exports nothing.
pub fn nothing() -> Vec<u8> {
    component(&[])
}

/// Never returns from its start function. Its exports have the names of a handler's, so that it gets
/// that far.
pub fn start_loop() -> Vec<u8> {
    let forever = vec![1, 7, 0, 0x03, 0x40, 0x0c, 0, 0x0b, 0x0b];
    let module =
        core(&[(TYPES, PLAIN_TYPE.to_vec()), (FUNCTIONS, vec![1, 0]), (START, vec![0]), (CODE, forever)]);
    let export = |name: &str| [vec![0], named(name), vec![3, 0, 0]].concat();
    let exports: Vec<u8> = ["describe", "init", "handle"].iter().flat_map(|name| export(name)).collect();
    component(&[
        (1, module),
        (2, vec![1, 0, 0, 0]), // One core instance, of that module, given nothing.
        (7, vec![1, 0x73]),    // One type: a string.
        (11, [vec![3], exports].concat()),
    ])
}

/// The same code with a digest of its own: a custom section, which means nothing.
pub fn marked(sound: &[u8], mark: u64) -> Vec<u8> {
    let custom = section(CUSTOM, &[named("mark"), mark.to_le_bytes().to_vec()].concat());
    [sound, &custom].concat()
}

/// A module with a few bytes changed, cut out, put in, or all that follows cut off.
pub fn mutant(sound: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..rng.usize(1..=8) {
        let at = rng.usize(..bytes.len().max(1));
        match rng.u8(..8) {
            0..=3 => bytes[at] ^= 1 << rng.u8(..8),
            4 => bytes[at] = rng.u8(..),
            5 => drop(bytes.remove(at)),
            6 => bytes.insert(at, rng.u8(..)),
            _ => {
                bytes.truncate(at.max(8));
                break;
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}
