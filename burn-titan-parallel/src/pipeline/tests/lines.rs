//! Time lines and their drawings.

use proptest::prelude::*;

use super::*;

#[test]
fn messages_take_their_time() {
    let schedule = one_f_one_b(shape(2, 1, 1)).unwrap();
    let costs = Costs::new(vec![costs(2.0, 2.0, 1.0), costs(4.0, 5.0, 1.0)], 0.5).unwrap();
    let line = simulate(&schedule, &costs).unwrap();
    let spans: Vec<(f64, f64)> =
        line.ranks.iter().flatten().map(|span| (span.start, span.end)).collect();
    assert_eq!(spans, [(0.0, 2.0), (13.0, 16.0), (2.5, 6.5), (6.5, 12.5)]);
    let transfers: Vec<(f64, f64)> = line.transfers.iter().map(|t| (t.start, t.end)).collect();
    assert_eq!(transfers, [(2.0, 2.5), (12.5, 13.0)]);
    assert_eq!((line.idle(0), line.stalled(0), line.stalled(1)), (11.0, 11.0, 0.0));
    assert_eq!(line.bubble(1), 6.0 / 16.0);
    assert_eq!(line.mean_bubble(), 17.0 / 32.0);
}

#[test]
fn no_messages_within_a_rank() {
    let line = line(&zbv(shape(2, 2, 1)).unwrap(), StageCosts::UNIT);
    // Down to the last rank and back, and the same for gradients.
    let ways: Vec<(usize, usize)> = line.transfers.iter().map(|t| (t.from, t.to)).collect();
    assert_eq!(ways, [(0, 1), (1, 0), (0, 1), (1, 0)]);
    let slow = Costs::new(vec![StageCosts::UNIT; 4], 10.0).unwrap();
    let slow = simulate(&zbv(shape(2, 2, 1)).unwrap(), &slow).unwrap();
    // One after the other: four messages, not six, four forwards, four backwards for inputs, and those for the weights
    // of stages 2 and 0.
    assert_eq!(slow.makespan(), 4.0 * 10.0 + 10.0);
    let alone = super::line(&interleaved(shape(1, 3, 2)).unwrap(), StageCosts::UNIT);
    assert_eq!(alone.transfers, []);
}

#[test]
fn peaks_by_stage() {
    let peaks = peaks(&zbv(shape(2, 2, 8)).unwrap());
    assert_eq!(peaks, Peaks { stages: vec![4, 3, 2, 1], ranks: vec![4, 4] });
}

#[test]
fn costs_that_cannot_be() {
    let of = |cost| Costs::new(vec![StageCosts { forward: cost, ..StageCosts::UNIT }], 0.0);
    assert_eq!(
        of(-1.0).unwrap_err().to_string(),
        "Forward of stage 0 takes -1: a time is finite and not negative"
    );
    assert!(of(f64::NAN).is_err());
    assert!(Costs::new(vec![], f64::INFINITY).is_err());
    let costs = Costs::new(vec![StageCosts::UNIT; 3], 0.0).unwrap();
    assert_eq!(
        simulate(&gpipe(shape(2, 1, 1)).unwrap(), &costs).unwrap_err().to_string(),
        "costs of 3 stages for a schedule of 2: give one for each stage"
    );
}

#[test]
fn as_text() {
    let line = line(&one_f_one_b(shape(2, 1, 3)).unwrap(), StageCosts::UNIT);
    assert_eq!(
        draw::text(&line, 200),
        "rank 0 |F0 F1 ......B0--- F2 B1--- ...B2--- | idle 25.0%, sends 3\n\
         rank 1 |...F0 B0--- F1 B1--- F2 B2--- ......| idle 25.0%, sends 3\n\
         time 12, bubble 25.0%; kind, micro-batch: F forward, B backward; . waits\n"
    );
    assert_eq!(
        draw::text(&line, 12),
        "rank 0 |FF..B FB .B | idle 25.0%, sends 3\n\
         rank 1 |.FB FB FB ..| idle 25.0%, sends 3\n\
         time 12, bubble 25.0%; kind, micro-batch: F forward, B backward; . waits\n"
    );
    let several = super::line(&zbv(shape(1, 2, 1)).unwrap(), StageCosts::UNIT);
    assert_eq!(
        draw::text(&several, 200),
        "rank 0 |0F0 1F0 1I0 1W0 0I0 0W0 | idle 0.0%, sends 0\n\
         time 6, bubble 0.0%; stage, kind, micro-batch: F forward, I backward for the input, W backward for the \
         weights; . waits\n"
    );
}

#[test]
fn as_svg() {
    let schedule = interleaved(shape(2, 2, 4)).unwrap();
    let line = line(&schedule, StageCosts::UNIT);
    let svg = draw::svg(&[("a < b & c", &line)]);
    let count = |what: &str| svg.matches(what).count();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains(">a &lt; b &amp; c: bubble 11.1%</text>"), "{svg}");
    // Steps, and the ground of two rows, and two kinds in the legend.
    assert_eq!(count("<rect "), 2 * 2 * 2 * 4 + 2 + 2);
    assert_eq!(count("<line "), 2 * 3 * 4);
    // Each of two stages has its own shade of both kinds; the legend has the light ones.
    for (colour, rectangles) in [("#3b82f6", 9), ("#16a34a", 9), ("#2c62b9", 8), ("#117a38", 8)] {
        assert_eq!(count(&format!("fill=\"{colour}\"/>")), rectangles, "{colour}");
    }
    assert!(svg.contains(">2F3</text>") && svg.contains(">27</text>"));
}

proptest! {
    /// A measured time line may hold anything.
    #[test]
    fn any_time_line_is_drawn(
        spans in prop::collection::vec((0usize..4, 0usize..9, any::<f64>(), any::<f64>()), 0..12),
        columns in 0usize..200,
    ) {
        let mut line = TimeLine { ranks: vec![Vec::new(); 3], transfers: Vec::new() };
        for (place, (kind, stage, start, end)) in spans.into_iter().enumerate() {
            let step = Step { kind: Kind::ALL[kind], stage, micro: place };
            line.ranks[place % 3].push(Span { step, start, end });
        }
        let text = draw::text(&line, columns);
        prop_assert_eq!(text.lines().count(), 4);
        for row in text.lines().take(3) {
            prop_assert!(row.split('|').nth(1).is_some_and(|time| time.len() <= columns), "{}", row);
        }
        prop_assert!(draw::svg(&[("any", &line), ("again", &line)]).ends_with("</svg>\n"));
    }
}
