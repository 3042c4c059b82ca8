//! What the sizes of all families have in common: the rules that they keep, and how parameters are counted.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Most transformer blocks; each has modules of its own, which a check of the config builds.
pub const MAX_LAYERS: usize = 10_000;

/// Most words: token ids are 32-bit integers on devices.
pub const MAX_VOCABULARY: usize = i32::MAX as usize;

/// The sizes of a model, as its family has them. Every field is a key of `model.overrides`.
pub trait ModelConfig: Serialize + DeserializeOwned + 'static {
    /// Name of the family.
    const FAMILY: &'static str;
    /// Names of the sizes that [`ModelConfig::flavor`] knows.
    const FLAVORS: &'static [&'static str];

    /// The size of that name.
    fn flavor(name: &str) -> Option<Self>;

    /// Everything that is wrong with the sizes; empty where a model can be built.
    fn validate(&self) -> Vec<ConfigProblem>;

    /// As JSON, every field written out.
    fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// A field of a config that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// Rules about sizes, and what breaks them.
#[derive(Debug, Default)]
pub struct Rules {
    /// What was found, in the order of the rules.
    pub problems: Vec<ConfigProblem>,
}

impl Rules {
    /// A problem with a field.
    pub fn report(&mut self, field: &'static str, message: String) {
        self.problems.push(ConfigProblem { field, message });
    }

    /// Sizes that must not be 0.
    pub fn at_least_1(&mut self, sizes: &[(&'static str, usize)]) {
        for (field, size) in sizes {
            if *size == 0 {
                self.report(field, "is 0: expected at least 1".into());
            }
        }
    }

    /// Sizes, and the most that they may be.
    pub fn at_most(&mut self, sizes: &[(&'static str, usize, usize)]) {
        for (field, size, most) in sizes {
            if size > most {
                self.report(field, format!("is {size}: expected at most {most}"));
            }
        }
    }

    /// Key heads that serve equally many query heads.
    pub fn grouped_heads(&mut self, n_heads: usize, n_kv_heads: usize) {
        if n_kv_heads != 0 && !n_heads.is_multiple_of(n_kv_heads) {
            let message = format!(
                "is {n_kv_heads}: expected a divisor of n_heads ({n_heads}), so that each serves equally many"
            );
            self.report("n_kv_heads", message);
        }
    }

    /// A width that RoPE turns in pairs.
    pub fn pairs(&mut self, field: &'static str, width: usize) {
        if !width.is_multiple_of(2) {
            self.report(field, format!("is {width}: expected an even number, for RoPE"));
        }
    }

    /// Numbers that must be finite and above 0.
    pub fn above_0(&mut self, numbers: &[(&'static str, f64)]) {
        for (field, number) in numbers {
            if !above_0(*number) {
                self.report(field, format!("is {number}: expected a number above 0"));
            }
        }
    }

    /// A number that must be finite and at least 0, and is used in single precision.
    pub fn at_least_0(&mut self, field: &'static str, number: f64) {
        if !number.is_finite() || number < 0.0 {
            self.report(field, format!("is {number}: expected a number of at least 0"));
        }
        self.single_precision(field, number);
    }

    /// A number above 0 that is used in single precision, where a smaller one is 0.
    pub fn single_precision(&mut self, field: &'static str, number: f64) {
        let single = number as f32;
        if above_0(number) && !(single.is_finite() && single >= f32::MIN_POSITIVE) {
            let (least, most) = (f32::MIN_POSITIVE, f32::MAX);
            let message = format!(
                "is {number:e}: expected a number from {least:e} to {most:e} (single precision)"
            );
            self.report(field, message);
        }
    }

    /// Parameters whose bytes in single precision can be counted, so that no later product overflows.
    pub fn countable(&mut self, parameters: Option<u64>) {
        let bytes = parameters.and_then(|count| count.checked_mul(16));
        if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
            let message = "and the other sizes give more parameters than can be counted";
            self.report("dim", message.into());
        }
    }
}

/// Whether a number is finite and above 0.
pub fn above_0(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

/// The elements of tensors of these shapes together; `None` where there are too many to count.
pub fn elements(shapes: &[&[usize]]) -> Option<u64> {
    let product = |shape: &&[usize]| {
        shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))
    };
    shapes.iter().try_fold(0u64, |sum, shape| sum.checked_add(product(shape)?))
}
