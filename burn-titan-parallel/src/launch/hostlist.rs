//! Lists of hosts as Slurm writes them: `node[001-003,007],gpu[1-2]-a,login`.
//!
//! A list is hosts between commas; a host is text and brackets; a bracket is numbers and ranges of
//! numbers between commas. The low end of a range says how wide its numbers are: `[08-10]` is 08, 09,
//! 10. Several brackets of one host multiply, the last one fastest.

use super::error::LaunchError;

/// More hosts than any list of Slurm can have (its own limit is 65,536).
const MOST_HOSTS: usize = 1 << 16;

/// What is wrong with a list: the character, from 0, and the cause.
type Wrong = (usize, &'static str);

/// The hosts of a list, in its order. `name` is where the list was read, for the error.
///
/// # Errors
/// If the list cannot be read, or has more than 65,536 hosts.
pub fn expand(name: &'static str, list: &str) -> Result<Vec<String>, LaunchError> {
    hosts(list).map_err(|(at, cause)| LaunchError::HostList {
        name,
        list: list.to_string(),
        at: list[..at].chars().count() + 1,
        cause,
    })
}

fn hosts(list: &str) -> Result<Vec<String>, Wrong> {
    let mut all = Vec::new();
    let mut start = 0;
    for end in ends(list)? {
        let host = &list[start..end];
        if host.is_empty() {
            return Err((start.min(end), "a host without a name"));
        }
        all.extend(one(host, start, MOST_HOSTS - all.len())?);
        start = end + 1;
    }
    Ok(all)
}

/// Where each host ends: the commas outside of brackets, and the end.
fn ends(list: &str) -> Result<Vec<usize>, Wrong> {
    let mut ends = Vec::new();
    let mut open = None;
    for (at, c) in list.char_indices() {
        match (c, open) {
            ('[', Some(_)) => return Err((at, "a bracket within a bracket")),
            ('[', None) => open = Some(at),
            (']', None) => return Err((at, "a bracket is closed that is not open")),
            (']', Some(_)) => open = None,
            (',', None) => ends.push(at),
            (c, None) if c.is_whitespace() || c.is_control() => {
                return Err((at, "white space within a name"));
            }
            _ => {}
        }
    }
    match open {
        Some(at) => Err((at, "a bracket that is not closed")),
        None => Ok([ends, vec![list.len()]].concat()),
    }
}

/// The hosts of one element, at most `most`; `offset` is where it is in the list.
fn one(host: &str, offset: usize, most: usize) -> Result<Vec<String>, Wrong> {
    let mut names = vec![String::new()];
    let mut at = 0;
    while at < host.len() {
        let rest = &host[at..];
        let (endings, length) = match rest.strip_prefix('[') {
            // The bracket is closed: `ends` has seen it.
            Some(inner) => {
                let inner = inner.split(']').next().unwrap_or_default();
                (bracket(inner, offset + at + 1, most / names.len())?, inner.len() + 2)
            }
            None => {
                let text = rest.split('[').next().unwrap_or_default();
                (vec![text.to_string()], text.len())
            }
        };
        names = names
            .iter()
            .flat_map(|name| endings.iter().map(move |ending| format!("{name}{ending}")))
            .collect();
        at += length;
    }
    if names.len() > most { Err((offset, "more than 65536 hosts")) } else { Ok(names) }
}

/// The numbers of a bracket, at most `most`.
fn bracket(inner: &str, offset: usize, most: usize) -> Result<Vec<String>, Wrong> {
    let mut numbers = Vec::new();
    let mut at = offset;
    for range in inner.split(',') {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(low, at)?, number(high, at)?);
        if first > last {
            return Err((at, "a range whose end is before its start"));
        }
        if last - first >= (most - numbers.len()) as u64 {
            return Err((at, "more than 65536 hosts"));
        }
        let width = low.len();
        numbers.extend((first..=last).map(|number| format!("{number:0width$}")));
        at += range.len() + 1;
    }
    Ok(numbers)
}

fn number(digits: &str, at: usize) -> Result<u64, Wrong> {
    // `parse` alone would take a sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err((at, "expected a number or a range of numbers, such as 07 or 1-3"));
    }
    // The length too: each host's number is padded to it.
    let short = Some(digits).filter(|digits| digits.len() <= 20);
    short.and_then(|digits| digits.parse().ok()).ok_or((at, "a number that is too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn good(list: &str) -> String {
        expand("NODES", list).unwrap().join(" ")
    }

    fn bad(list: &str) -> String {
        expand("NODES", list).unwrap_err().to_string()
    }

    #[test]
    fn lists_of_slurm() {
        for (list, want) in [
            ("login", "login"),
            ("a,b-2,c.d.org", "a b-2 c.d.org"),
            ("node[001-003,007],gpu[1-2]-a", "node001 node002 node003 node007 gpu1-a gpu2-a"),
            ("n[8-11]", "n8 n9 n10 n11"),
            ("n[08-11]", "n08 n09 n10 n11"),
            ("n[098-101]x,m", "n098x n099x n100x n101x m"),
            ("r[1-2]n[01-02]", "r1n01 r1n02 r2n01 r2n02"),
            ("r[1,3]-[0-1]-[5]", "r1-0-5 r1-1-5 r3-0-5 r3-1-5"),
            ("[1-2]", "1 2"),
            ("n[00]", "n00"),
            ("n[000-002]", "n000 n001 n002"),
            ("b[1-1],a", "b1 a"),
        ] {
            assert_eq!(good(list), want, "{list}");
        }
        assert_eq!(expand("NODES", "n[0-65535]").unwrap().len(), 65_536);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_place() {
        for (list, at, cause) in [
            ("", 1, "a host without a name"),
            ("a,,b", 3, "a host without a name"),
            ("a,", 3, "a host without a name"),
            ("n[1-2", 2, "a bracket that is not closed"),
            ("n1-2]", 5, "a bracket is closed that is not open"),
            ("n[1,[2-3]]", 5, "a bracket within a bracket"),
            ("n[]", 3, "expected a number or a range of numbers, such as 07 or 1-3"),
            ("n[1,a]", 5, "expected a number or a range of numbers, such as 07 or 1-3"),
            ("n[1-2-3]", 3, "expected a number or a range of numbers, such as 07 or 1-3"),
            ("n[+1]", 3, "expected a number or a range of numbers, such as 07 or 1-3"),
            ("é,n[3-1]", 5, "a range whose end is before its start"),
            ("a b", 2, "white space within a name"),
            ("n[0-65536]", 3, "more than 65536 hosts"),
            ("a,n[0-65535]", 5, "more than 65536 hosts"),
            ("n[0-999]m[0-999]", 11, "more than 65536 hosts"),
            ("n[0-99999999999999999999]", 3, "a number that is too large"),
            ("n[000000000000000000001]", 3, "a number that is too large"),
            ("n[0-18446744073709551615]", 3, "more than 65536 hosts"),
        ] {
            let want =
                format!("NODES: cannot read the list of hosts `{list}` at character {at}: {cause}");
            assert_eq!(bad(list), want);
        }
    }

    /// An element of a list: text, then brackets with a text behind each.
    fn element() -> impl Strategy<Value = (String, Vec<String>)> {
        let range = (0u64..200, 0u64..12, 1usize..5);
        let bracket = (proptest::collection::vec(range, 1..4), "[a-z-]{0,3}");
        ("[a-z]{1,4}", proptest::collection::vec(bracket, 0..3)).prop_map(|(prefix, brackets)| {
            let mut written = prefix.clone();
            let mut hosts = vec![prefix];
            for (ranges, suffix) in brackets {
                let mut parts = Vec::new();
                let mut numbers = Vec::new();
                for (low, more, width) in ranges {
                    // Written as the low end pads it; counted here one by one.
                    parts.push(match more {
                        0 => format!("{low:0width$}"),
                        _ => format!("{low:0width$}-{}", low + more),
                    });
                    numbers.extend((low..=low + more).map(|n| format!("{n:0width$}")));
                }
                written += &format!("[{}]{suffix}", parts.join(","));
                let mut longer = Vec::new();
                for host in hosts {
                    longer.extend(numbers.iter().map(|number| format!("{host}{number}{suffix}")));
                }
                hosts = longer;
            }
            (written, hosts)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_expanded(list in proptest::collection::vec(element(), 1..5)) {
            let written: Vec<String> = list.iter().map(|(written, _)| written.clone()).collect();
            let want: Vec<String> = list.into_iter().flat_map(|(_, hosts)| hosts).collect();
            prop_assert_eq!(expand("NODES", &written.join(",")).unwrap(), want);
        }

        #[test]
        fn no_text_panics(list in "[a-c0-9é,\\[\\] -]{0,24}") {
            let _ = expand("NODES", &list);
        }
    }
}
