//! What is generated: the schema, the reference page, the resolved config.

use std::path::Path;

use serde_json::{Value, json};

use super::{LARGE, SMALLEST, parse};
use crate::config::shape::{self, Section, Shape};
use crate::config::{Config, json_schema, markdown, to_yaml};

fn repository_file(name: &str) -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    (path, text)
}

#[test]
fn the_reference_page_is_fresh() {
    let (_, page) = repository_file("docs/configuration.md");
    assert!(
        page == markdown(),
        "docs/configuration.md is stale; renew it with\n\
         burn-titan schema --markdown > docs/configuration.md"
    );
}

#[test]
fn the_schema_file_is_fresh() {
    let (_, text) = repository_file("docs/config.schema.json");
    assert!(
        serde_json::from_str(&text).ok() == Some(json_schema()),
        "docs/config.schema.json is stale; renew it with\n\
         burn-titan schema > docs/config.schema.json"
    );
}

#[test]
fn the_bundled_configs_are_valid() {
    for name in [
        "configs/deepseek_v3_671b.yaml",
        "configs/deepseek_v3_debug.yaml",
        "configs/llama3_debug.yaml",
        "configs/llama3_wgpu_ci.yaml",
        "configs/qwen3_debug.yaml",
        "configs/qwen3_moe_debug.yaml",
    ] {
        let (path, text) = repository_file(name);
        assert!(!text.is_empty(), "{}", path.display());
        let schema = "# yaml-language-server: $schema=../docs/config.schema.json\n";
        assert!(text.starts_with(schema), "{name} must start with {schema}");
        parse(&text, &[]).unwrap_or_else(|errors| panic!("{name}: {errors}"));
    }
}

#[test]
fn a_resolved_config_reads_back_equal() {
    for text in [SMALLEST, LARGE] {
        let config = parse(text, &[]).unwrap().config;
        let yaml = to_yaml(&config);
        let again = parse(&yaml, &[]).unwrap_or_else(|errors| panic!("{yaml}{errors}"));
        assert_eq!(again.config, config, "{yaml}");
        assert_eq!(to_yaml(&again.config), yaml);
    }
}

#[test]
fn odd_strings_and_numbers_survive_the_round_trip() {
    let mut config = parse(LARGE, &[]).unwrap().config;
    for odd in [
        "null",
        "~",
        "true",
        "yes",
        "1e5",
        "0x10",
        "007",
        "1_0",
        ".nan",
        "-",
        "- a",
        "a: b",
        "#",
        "a #b",
        " a ",
        "a\nb\n",
        "\ta",
        "\"",
        "'",
        "<<",
        "*a",
        "&a",
        "!a",
        "%",
        "@",
        "`",
        "[",
        "{",
        "é",
        "\u{1f600}",
        "\u{0}",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\\",
        "---",
        "...",
        ": ",
    ] {
        config.data.bos_token = Some(odd.to_owned());
        config.data.train[0].text_key = odd.to_owned();
        config.model.overrides.insert(odd.to_owned(), json!([odd, {odd: [odd]}]));
        for number in [1e-300, f64::MIN_POSITIVE, 0.1 + 0.2, 1e22, 3.0, f64::MAX] {
            config.optimizer.lr = number;
            config.model.overrides.insert("number".into(), json!(number));
            let yaml = to_yaml(&config);
            let again = parse(&yaml, &[]).unwrap_or_else(|errors| panic!("{yaml}{errors}"));
            assert_eq!(again.config, config, "{odd:?}\n{yaml}");
        }
    }
}

/// Calls `visit` with the path of every key and choice and its help.
fn visit_docs(section: &Section, path: &str, visit: &mut impl FnMut(String, &str)) {
    for field in &section.fields {
        let path = format!("{path}.{}", field.key);
        visit(path.clone(), &field.doc);
        let shape = match &field.shape {
            Shape::List { item, .. } => item,
            shape => shape,
        };
        match shape {
            Shape::Section(section) => visit_docs(section, &path, visit),
            Shape::Choice(choices) => {
                choices.iter().for_each(|c| visit(format!("{path}: {}", c.name), &c.doc));
            }
            Shape::Any => panic!("{path}: the schema says nothing that the checks understand"),
            _ => {}
        }
    }
}

#[test]
fn every_key_and_choice_has_help() {
    let mut count = 0;
    visit_docs(shape::root(), "", &mut |path, doc| {
        count += 1;
        assert!(doc.len() > 4 && doc.ends_with(['.', ')', '`']), "{path} has the help {doc:?}");
    });
    assert!(count > 100, "{count}");
}

#[test]
fn the_checks_know_every_key_and_default() {
    // What serde writes and what the schema says must be the same keys with the same defaults.
    let config = serde_json::to_value(Config::default()).unwrap();
    for (key, section) in config.as_object().unwrap() {
        let Shape::Section(shape) = &shape::root().field(key).unwrap().shape else { panic!() };
        let values = section.as_object().unwrap();
        assert_eq!(values.keys().collect::<Vec<_>>(), shape.keys().collect::<Vec<_>>());
        for field in shape.fields.iter().filter(|field| !field.required) {
            assert_eq!(field.default.as_ref(), values.get(&field.key), "{key}.{}", field.key);
        }
    }
}

#[test]
fn the_schema_says_what_editors_need() {
    let schema = json_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["required"], json!(["data"]));
    let defs = &schema["$defs"];
    assert_eq!(defs["DataConfig"]["required"], json!(["train"]));
    assert_eq!(defs["SourceConfig"]["required"], json!(["path"]));
    let steps = &defs["TrainingConfig"]["properties"]["steps"];
    assert_eq!(
        *steps,
        json!({
            "title": "steps", "description": "Optimizer steps.", "type": "integer",
            "format": "uint", "minimum": 1, "default": 100
        })
    );
    let eps = &defs["OptimizerConfig"]["properties"]["eps"];
    assert_eq!(eps["exclusiveMinimum"], json!(0));
    let names: Vec<_> =
        defs["DecayType"]["oneOf"].as_array().unwrap().iter().map(|c| &c["const"]).collect();
    assert_eq!(names, [&json!("linear"), &json!("sqrt"), &json!("cosine")]);
    assert_eq!(schema["additionalProperties"], Value::Bool(false));
}

#[test]
fn the_page_has_every_key() {
    let page = markdown();
    let mut paths = Vec::new();
    visit_docs(shape::root(), "", &mut |path, _| paths.push(path));
    for path in paths.iter().filter(|path| path.matches('.').count() > 1 && !path.contains(':')) {
        let key = path.rsplit('.').next().unwrap();
        assert!(page.contains(&format!("\n| `{key}` | ")), "{path}");
    }
    assert!(page.contains("| `train` | sequence of mappings | required |"), "{page}");
    assert!(page.contains("`cosine`: `(1 + cos(pi p)) / 2`."), "{page}");
    assert!(page.contains("## Each element of `data.train` and of `data.validation`"), "{page}");
}
