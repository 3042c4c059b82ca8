//! `schema`.

use burn_titan_core::config::{json_schema, markdown};

pub fn print(as_markdown: bool) {
    if as_markdown {
        print!("{}", markdown());
    } else {
        println!("{:#}", json_schema());
    }
}
