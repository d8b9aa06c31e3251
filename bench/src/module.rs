//! A handler's module of a wanted size, as bytes, for a deploy of something that no node has seen.
//!
//! What is added is real code: a core module of another handler, several times, each in a section of its own. A node
//! checks, compiles, keeps and loads all of them with the rest; nothing instantiates them, so none of them runs.

use anyhow::{Context, Result};

/// Number of the section that holds a core module.
const CORE_MODULE: u8 = 1;
/// A custom section with a name of one byte, which means nothing: id, size, length of the name, the name.
const MARK: [u8; 4] = [0, 2, 1, b'x'];
/// Magic number and version.
const HEADER_BYTES: usize = 8;

/// A component that does what `handler` does, with core modules of `more` added until it has so many bytes. It has a
/// digest of its own also if it is large enough as it is.
pub fn grown(handler: &[u8], more: &[u8], bytes: usize) -> Result<Vec<u8>> {
    let sections = sections(more)?;
    let code = sections.into_iter().filter(|section| section[0] == CORE_MODULE);
    let largest = code.max_by_key(|section| section.len()).context("a component without a core module")?;
    let mut grown = [handler, &MARK[..]].concat();
    while grown.len() < bytes {
        grown.extend_from_slice(largest);
    }
    Ok(grown)
}

/// Sections of a component's first level, each with its number and its size.
fn sections(component: &[u8]) -> Result<Vec<&[u8]>> {
    let mut rest = component.get(HEADER_BYTES..).context("too short for a component")?;
    let mut sections = Vec::new();
    while let Some((_, after)) = rest.split_first() {
        let (size, digits) = number(after)?;
        let section = rest.split_at_checked(1 + digits + size);
        let (section, next) = section.context("a section that ends early")?;
        sections.push(section);
        rest = next;
    }
    Ok(sections)
}

/// Unsigned LEB128, and how many bytes it has.
fn number(bytes: &[u8]) -> Result<(usize, usize)> {
    let digits = 1 + bytes.iter().take_while(|&&byte| byte & 0x80 != 0).count();
    let number = bytes.get(..digits).context("a number that ends early")?;
    Ok((number.iter().rev().fold(0, |sum, &byte| (sum << 7) | usize::from(byte & 0x7f)), digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(sections: &[(u8, usize)]) -> Vec<u8> {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        for &(id, size) in sections {
            bytes.extend([id, (size & 0x7f) as u8 | 0x80, (size >> 7) as u8]);
            bytes.extend(vec![0xaa; size]);
        }
        bytes
    }

    #[test]
    fn a_module_grows_by_whole_core_modules_of_another_one() {
        let (handler, more) = (component(&[(1, 100)]), component(&[(7, 5), (1, 10), (1, 300), (11, 900)]));
        let grown = grown(&handler, &more, 1_000).expect("sound");
        let added: Vec<usize> =
            sections(&grown).expect("sound").iter().map(|section| section.len()).collect();
        assert_eq!(
            added,
            [103, 4, 303, 303, 303],
            "the handler's, the mark, and the largest core module of the other"
        );
    }

    #[test]
    fn one_that_is_large_enough_only_gets_another_digest() {
        let handler = component(&[(1, 100)]);
        let grown = grown(&handler, &handler, 50).expect("sound");
        assert_eq!(grown, [&handler[..], &MARK[..]].concat());
        assert!(super::grown(&handler, &handler[..60], 1_000).is_err(), "a section that ends early");
    }
}
