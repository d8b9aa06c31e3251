//! Sorting keys that lie elsewhere.

/// The order of `count` keys, equal ones in the order they came. Compares eight bytes behind what all
/// keys share first, which for most comparisons spares two look-ups in cold memory.
pub fn sort_keys<'a>(count: usize, key: impl Fn(u32) -> &'a [u8]) -> Vec<u32> {
    let Some(last) = count.checked_sub(1) else { return Vec::new() };
    let first = key(0);
    let shared = (1..=last as u32).fold(first.len(), |shared, index| {
        first[..shared].iter().zip(key(index)).take_while(|(a, b)| a == b).count()
    });
    let head = |index| {
        let rest = &key(index)[shared..];
        let mut bytes = [0; 8];
        let taken = rest.len().min(8);
        bytes[..taken].copy_from_slice(&rest[..taken]);
        u64::from_be_bytes(bytes)
    };
    let mut order: Vec<(u64, u32)> = (0..=last as u32).map(|index| (head(index), index)).collect();
    order.sort_unstable_by(|&(head_a, a), &(head_b, b)| {
        head_a.cmp(&head_b).then_with(|| key(a).cmp(key(b))).then(a.cmp(&b))
    });
    order.into_iter().map(|(_, index)| index).collect()
}

/// Of keys that are equal, the last: where it lies, in the order of the keys. Of a log's records these are the ones that
/// count.
pub fn last_of_each_key<'a>(count: usize, key: impl Fn(u32) -> &'a [u8]) -> Vec<u32> {
    let mut order = sort_keys(count, &key);
    order.dedup_by(|later, kept| {
        let is_same = key(*later) == key(*kept);
        if is_same {
            *kept = *later;
        }
        is_same
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_bytes_whatever_they_share_and_equal_ones_stay_in_order() {
        let sets: [&[&[u8]]; 5] = [
            &[],
            &[b"one"],
            &[b"same", b"same", b"same"],
            &[b"p-2", b"p-10", b"p-", b"p-1", b"p-1\0", b"p-10"],
            &[b"\x01\x02ab12345678b", b"\x01\x02ab12345678a", b"\0position", b"\x01\x02ab12345678a", b"\xff"],
        ];
        for keys in sets {
            let mut expected: Vec<u32> = (0..keys.len() as u32).collect();
            expected.sort_by_key(|&index| keys[index as usize]);
            assert_eq!(sort_keys(keys.len(), |index| keys[index as usize]), expected, "{keys:?}");
        }
    }

    #[test]
    fn of_equal_keys_the_last_is_left_in_the_order_of_keys() {
        let keys: [&[u8]; 6] = [b"b", b"a", b"c", b"b", b"a", b"b"];
        assert_eq!(last_of_each_key(keys.len(), |index| keys[index as usize]), [4, 5, 2]);
        assert!(last_of_each_key(0, |_| unreachable!("there is no key")).is_empty());
    }
}
