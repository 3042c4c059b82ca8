//! The header of NumPy's array format, versions 1 to 3 (`numpy.lib.format`, NEP 1).

const MAGIC: &[u8] = b"\x93NUMPY";

/// What a `.npy` header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NpyHeader {
    /// NumPy's name of the element type, for example `<u2`.
    pub(crate) descr: String,
    /// Whether a column is contiguous instead of a row.
    pub(crate) fortran_order: bool,
    /// Elements in each direction.
    pub(crate) shape: Vec<u64>,
    /// Where the elements begin, in bytes.
    pub(crate) data_start: usize,
}

/// Reads the header at the beginning of a file's bytes. An error is the cause, for a message.
pub(crate) fn parse_header(bytes: &[u8]) -> Result<NpyHeader, String> {
    let rest =
        bytes.strip_prefix(MAGIC).ok_or("not a .npy file (it does not begin with \\x93NUMPY)")?;
    let short = || "the file ends inside its header".to_owned();
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (length, rest, prefix) = match version[0] {
        1 => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*length)), rest, 10)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| short())?;
            (length, rest, 12)
        }
        other => {
            return Err(format!("version {other} of the .npy format is not known (1 to 3 are)"));
        }
    };
    let header = rest.get(..length).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| "the header is not text".to_owned())?;
    let fields = Fields::parse(header).ok_or_else(|| {
        format!(
            "cannot read the header {:?}",
            header.trim_end().chars().take(120).collect::<String>()
        )
    })?;
    let missing = |name: &str| format!("the header has no {name:?}");
    Ok(NpyHeader {
        descr: fields.descr.ok_or_else(|| missing("descr"))?,
        fortran_order: fields.fortran_order.ok_or_else(|| missing("fortran_order"))?,
        shape: fields.shape.ok_or_else(|| missing("shape"))?,
        data_start: prefix + length,
    })
}

/// The entries of the header, which is the literal of a Python `dict`.
#[derive(Default)]
struct Fields {
    descr: Option<String>,
    fortran_order: Option<bool>,
    shape: Option<Vec<u64>>,
}

impl Fields {
    fn parse(header: &str) -> Option<Self> {
        let mut fields = Self::default();
        let mut rest = header.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        while !rest.is_empty() {
            let (key, after) = quoted(rest)?;
            let value = after.trim_start().strip_prefix(':')?.trim_start();
            rest = match key {
                "descr" if value.starts_with('[') => {
                    // A structured type: taken whole, so that the message can show it.
                    let end = value.find(']')? + 1;
                    fields.descr = Some(value[..end].to_owned());
                    &value[end..]
                }
                "descr" => {
                    let (descr, after) = quoted(value)?;
                    fields.descr = Some(descr.to_owned());
                    after
                }
                "fortran_order" => {
                    let (answer, after) = match value.strip_prefix("True") {
                        Some(after) => (true, after),
                        None => (false, value.strip_prefix("False")?),
                    };
                    fields.fortran_order = Some(answer);
                    after
                }
                "shape" => {
                    let (inside, after) = value.strip_prefix('(')?.split_once(')')?;
                    let numbers = inside.split(',').map(str::trim).filter(|part| !part.is_empty());
                    fields.shape =
                        Some(numbers.map(|part| part.parse().ok()).collect::<Option<_>>()?);
                    after
                }
                _ => return None,
            };
            rest = rest.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        Some(fields)
    }
}

/// Splits a quoted string off the front.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([version, 0]);
        if version == 1 {
            bytes.extend((header.len() as u16).to_le_bytes());
        } else {
            bytes.extend((header.len() as u32).to_le_bytes());
        }
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn reads_all_versions() {
        for version in 1..=3 {
            let header = "{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }   \n";
            let parsed = parse_header(&file(version, header)).unwrap();
            let prefix = if version == 1 { 10 } else { 12 };
            assert_eq!(
                parsed,
                NpyHeader {
                    descr: "<u2".into(),
                    fortran_order: false,
                    shape: vec![3, 4],
                    data_start: prefix + header.len()
                }
            );
        }
        let parsed =
            parse_header(&file(1, "{\"shape\":(7,),\"fortran_order\":True,\"descr\":\"|u1\"}"));
        assert_eq!(parsed.unwrap().shape, [7]);
        let parsed =
            parse_header(&file(1, "{'descr': '<i8', 'fortran_order': False, 'shape': ()}"));
        assert_eq!(parsed.unwrap().shape, [0_u64; 0]);
    }

    #[test]
    fn refuses_bad_headers() {
        let cases: [(Vec<u8>, &str); 8] = [
            (b"PK\x03\x04".to_vec(), "not a .npy file (it does not begin with \\x93NUMPY)"),
            (file(1, "{}")[..9].to_vec(), "the file ends inside its header"),
            (file(2, "{'descr': '<u2'}")[..20].to_vec(), "the file ends inside its header"),
            (file(9, "{}"), "version 9 of the .npy format is not known (1 to 3 are)"),
            (file(1, "{}"), "the header has no \"descr\""),
            (file(1, "{'descr': '<u2', 'shape': (1,)}"), "the header has no \"fortran_order\""),
            (file(1, "{'descr': 3}"), "cannot read the header \"{'descr': 3}\""),
            (
                file(1, "{'shape': (1, 99999999999999999999)}"),
                "cannot read the header \"{'shape': (1, 99999999999999999999)}\"",
            ),
        ];
        for (bytes, message) in cases {
            assert_eq!(parse_header(&bytes).unwrap_err(), message);
        }
    }

    #[test]
    fn never_panics_on_damaged_headers() {
        let good = file(1, "{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }\n");
        for position in 0..good.len() {
            for byte in [0, b'\'', b'(', b'{', 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[position] = byte;
                let _ = parse_header(&bytes);
            }
            let _ = parse_header(&good[..position]);
        }
    }
}
