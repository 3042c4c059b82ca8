//! Broken configs and the exact messages they get.

use super::{LARGE, SMALLEST, parse, problems};
use crate::config::{Checks, ConfigErrors, Draft, SourceFormat};

const SECTIONS: &str = "`run`, `model`, `data`, `training`, `precision`, `optimizer`, \
    `lr_scheduler`, `activation_checkpoint`, `parallelism`, `comm`, `checkpoint`, `validation`, \
    `metrics`, `debug`";

/// Runs the cases of a table and returns their number.
///
/// Cases are separated by `----`; in each, `$` starts an override and `=>` an expected problem.
fn run_table(table: &str) -> usize {
    let cases: Vec<&str> = table.split("----\n").skip(1).collect();
    for case in &cases {
        let (mut text, mut overrides, mut expected) = (String::new(), vec![], vec![]);
        for line in case.lines() {
            if let Some(problem) = line.strip_prefix("=> ") {
                expected.push(problem.replace("{sections}", SECTIONS));
            } else if let Some(word) = line.strip_prefix("$ ") {
                overrides.push(word);
            } else {
                text += &format!("{}\n", line.replace("<TAB>", "\t"));
            }
        }
        assert_eq!(problems(&text, &overrides), expected, "in the case\n{case}");
    }
    cases.len()
}

#[test]
fn syntax() {
    assert_eq!(run_table(include_str!("broken/syntax.txt")), 16);
}

#[test]
fn keys() {
    assert_eq!(run_table(include_str!("broken/keys.txt")), 22);
}

#[test]
fn types_and_ranges() {
    assert_eq!(run_table(include_str!("broken/types.txt")), 57);
}

#[test]
fn rules_across_fields() {
    assert_eq!(run_table(include_str!("broken/rules.txt")), 36);
}

#[test]
fn degrees_are_held_against_the_ranks_that_are_started() {
    let told = |degrees: &str, ranks| {
        let text = format!("{SMALLEST}parallelism: {{{degrees}}}\n");
        let checks = Checks { files: false, ranks: Some(ranks) };
        Draft::parse("a.yaml", &text, &[], checks)
            .finish()
            .err()
            .map(|errors| errors.problems().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(told("", 7), None);
    assert_eq!(told("data_parallel_replicate_degree: 2", 6), None);
    let hint = "; `--ranks N`, or the cluster, says how many are started";
    assert_eq!(
        told("data_parallel_replicate_degree: 4, data_parallel_shard_degree: 2", 4),
        Some(vec![format!("a.yaml:2:50: 4 x 2 = 8 ranks, but 4 were started{hint}")])
    );
    assert_eq!(
        told("data_parallel_replicate_degree: 3", 8),
        Some(vec![format!(
            "a.yaml:2:15: 8 ranks do not divide by 3, so that data_parallel_shard_degree = -1 has \
             no value{hint}"
        )])
    );
    assert_eq!(
        told("data_parallel_shard_degree: 2}\ntraining: {global_batch_size: 4", 2),
        Some(vec![
            "a.yaml:3:12: a global batch of 4 sequences is not a multiple of local_batch_size x \
             data-parallel ranks = 4 x 2 = 8; use 8"
                .to_string()
        ])
    );
}

#[test]
fn overrides() {
    assert_eq!(run_table(include_str!("broken/overrides.txt")), 21);
}

#[test]
fn empty_files_lack_only_the_data() {
    let expected = ["a.yaml: `data.train` is missing, and it has no default; \
                     `train`: Training sources, mixed by weight."];
    for text in ["", "\n", "# only a comment", "---\n", "\u{feff}", "\u{feff}---\n", "~", "{}"] {
        assert_eq!(problems(text, &[]), expected, "{text:?}");
        assert!(parse(text, &["data.train=[{path: a.bin}]"]).is_ok(), "{text:?}");
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let text =
        "\u{feff}data: {train: [{path: \"\\e[31m\", format: \"\\e]0;x\\a\"}]}\nrun: \"\u{202e}x\"";
    let errors = parse(text, &["tr\u{1b}[0m=1"]).unwrap_err().to_string();
    assert!(errors.contains("the string `\\u{1b}]0;x\\u{7}`"), "{errors}");
    assert!(!errors.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{errors}");
}

#[test]
fn values_that_are_right() {
    let loaded = parse(LARGE, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let config = &loaded.config;
    assert_eq!(config.training.steps, 1000);
    assert_eq!(config.training.seq_len, 128);
    assert_eq!(config.training.seed, u64::MAX);
    assert_eq!(config.optimizer.lr, 1e-3);
    assert_eq!(config.optimizer.eps, 8.0e-12);
    assert_eq!(config.optimizer.beta1, 0.0);
    assert_eq!(config.optimizer.momentum, 0.95);
    assert_eq!(config.optimizer.groups[0].lr, Some(8e-4));
    assert_eq!(config.data.eos_token.as_deref(), Some("null"));
    assert_eq!(config.data.train[1].path.to_str(), Some("data/tokens \"x\".bin"));
    assert_eq!(config.model.overrides["rope_scaling"]["names"][1], "b\tc");
    assert_eq!(config.model.overrides["n_layers"], 2);

    let overrides = [
        "training.steps=2000",
        "data.train.0.weight=3",
        "data.train[1].format=auto",
        "model.overrides.rope_scaling.factor=4",
        "model.overrides.new.key=[1, {a: b}]",
        "training.global_batch_size=",
        "data.bos_token=<s>=</s>",
    ];
    let config = parse(LARGE, &overrides).unwrap_or_else(|errors| panic!("{errors}")).config;
    assert_eq!(config.training.steps, 2000);
    assert_eq!(config.training.global_batch_size, None);
    assert_eq!(config.data.train[0].weight, 3.0);
    assert_eq!(config.data.train[1].format, SourceFormat::Auto);
    assert_eq!(config.data.bos_token.as_deref(), Some("<s>=</s>"));
    assert_eq!(config.model.overrides["rope_scaling"]["factor"], 4);
    assert_eq!(config.model.overrides["new"]["key"][1]["a"], "b");
}

#[test]
fn anchors_and_merge_keys_are_expanded() {
    let text = "data: {train: [&a {path: a.bin, weight: 2}, {<<: *a, path: b.bin}, *a]}\n";
    let train = parse(text, &[]).unwrap().config.data.train;
    let seen: Vec<_> = train.iter().map(|s| (s.path.to_str().unwrap(), s.weight)).collect();
    assert_eq!(seen, [("a.bin", 2.0), ("b.bin", 2.0), ("a.bin", 2.0)]);
}

#[test]
fn hostile_sizes_are_refused() {
    let limits = "too large for a config: at most 32 levels, 50000 values and 10000 parts repeated \
                  by aliases are read";
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (inner, outer) in "abcdefghi".chars().zip("bcdefghij".chars()) {
        let items = vec![format!("*{inner}"); 9].join(",");
        laughs += &format!("{outer}: &{outer} [{items}]\n");
    }
    assert_eq!(problems(&laughs, &[]).len(), 1);
    assert!(problems(&laughs, &[])[0].contains("too large"), "{:?}", problems(&laughs, &[]));
    let many = format!("a: [{}]", "1,".repeat(60_000));
    assert!(problems(&many, &[])[0].ends_with(limits), "{:?}", problems(&many, &[]));
    let deep: String = (0..300).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(problems(&deep, &[])[0].ends_with(limits), "{:?}", problems(&deep, &[]));
    for open in ["[", "{a: ", "- ", "? "] {
        assert_eq!(problems(&open.repeat(100_000), &[]).len(), 1, "{open}");
    }
}

#[test]
fn many_problems_are_cut_short() {
    let text: String = (0..1000).map(|i| format!("zebra{i}: 1\n")).collect();
    let errors = parse(&text, &[]).unwrap_err();
    assert_eq!(errors.problems().len(), 100);
    let last = errors.to_string();
    assert!(last.ends_with("\n1001 errors in a.yaml (the first 100 are shown)"), "{last}");
}

#[test]
fn rendering() {
    let text = "data: {train: [{path: a.bin}]}\ntraining:\n  seq_length: 512\r\n  steps:\n    - 1\n\
                optimizer: {\tname: 'wörter', lr: 0x}\n";
    let errors = parse(text, &["run.name=7"]).unwrap_err();
    let expected = "\
error: unknown key `seq_length` in `training`
 --> a.yaml:3:3
  |
3 |   seq_length: 512
  |   ^^^^^^^^^^
  = help: did you mean `seq_len`?

error: `training.steps`: expected an integer of at least 1, found a sequence
 --> a.yaml:4:3
  |
4 |   steps:
  |   ^^^^^

error: `optimizer.name`: expected one of `adamw`, `muon`, found the string `wörter`
 --> a.yaml:6:20
  |
6 | optimizer: { name: 'wörter', lr: 0x}
  |                    ^^^^^^^^

error: `optimizer.lr`: expected a number above 0, found the string `0x`
 --> a.yaml:6:34
  |
6 | optimizer: { name: 'wörter', lr: 0x}
  |                                  ^^

error: `run.name`: expected a non-empty string, found the integer `7`
 --> override `run.name=7`
  |
  | run.name=7
  |          ^
  = help: put it in quotes: `\"7\"`

5 errors in a.yaml";
    assert_eq!(errors.to_string(), expected);
    let colored = errors.render(true);
    assert!(colored.starts_with("\u{1b}[1;31merror\u{1b}[0m: "), "{colored}");
}

#[test]
fn long_lines_are_cut_around_the_problem() {
    let padding = "x".repeat(300);
    let text = format!("data: {{train: [{{path: {padding}, weight: abc, text_key: {padding}}}]}}");
    let errors = parse(&text, &[]).unwrap_err().render(false);
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines[1], " --> a.yaml:1:333");
    assert_eq!(lines[3].len(), "1 | ".len() + 100 + 2 * "...".len());
    let at = lines[4].find('^').unwrap();
    assert_eq!(&lines[3][at..at + 3], "abc");
    assert_eq!(lines[4].matches('^').count(), 3);
}

#[test]
fn problems_of_others_join_the_list() {
    let text = "model:\n  overrides: {n_heads: 7}\ntraining: {steps: x}\n";
    let overrides = ["data.train=[{path: a.bin}]".to_owned()];
    let mut draft = Draft::parse("a.yaml", text, &overrides, Checks { files: false, ranks: None });
    assert!(draft.is_sound("model") && draft.is_sound("model.overrides.n_heads"));
    assert!(!draft.is_sound("training") && !draft.is_sound("training.steps"));
    assert!(draft.is_sound("training.seq_len"));
    draft.report("model.overrides.n_heads", "7 heads", Some("use 8"));
    draft.report("model.flavor", "no such flavor", None);
    draft.report("metrics", "not given at all", None);
    let list = draft.finish().unwrap_err();
    let list: Vec<_> = list.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        list,
        [
            "a.yaml:1:1: no such flavor",
            "a.yaml: not given at all",
            "a.yaml:2:15: 7 heads; use 8",
            "a.yaml:3:19: `training.steps`: expected an integer of at least 1, found the string `x`",
        ]
    );
    let source = parse(SMALLEST, &[]).unwrap().source;
    assert!(source.contains("data.train[0].path") && !source.contains("data.tokenizer"));
    let errors = ConfigErrors::at(&source, "data.train[0].path", "is odd", None);
    assert_eq!(errors.problems()[0].to_string(), "a.yaml:1:17: is odd");
}
