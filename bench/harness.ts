import type { MusterError } from '#shared/errors'

/** What one run of one side did: so many units of work for so much time of the server's processor. */
export interface Measured {
  readonly count: number
  /** utime + stime of the server's processes, s. */
  readonly cpuS: number
}

/** One side of a comparison: ours, or a peer. */
export interface Side<Run = Measured> {
  readonly name: string
  /** What runs, so that a reader can repeat it. */
  readonly command: string
  readonly version: string
  /** One run; 0 is a rehearsal, whose figure is dropped. */
  measure(run: number): Promise<Run>
}

export interface Figure {
  readonly name: string
  readonly command: string
  readonly version: string
  /** Median of the runs, in the unit of the result. */
  readonly value: number
  readonly runs: readonly number[]
}

export interface Comparison {
  readonly unit: string
  readonly better: 'higher' | 'lower'
  readonly ours: Figure
  readonly peers: readonly Figure[]
  /** Ours over the first peer; null without one. */
  readonly ratio: number | null
  /** Ours over each peer, by its name. */
  readonly ratios: Readonly<Record<string, number>>
}

/** A figure without a peer, and the most that it should be. */
export interface Fact {
  readonly value: number
  readonly unit: string
  readonly most?: number
}

/** The one line with which a bench ends. */
export interface Result extends Comparison {
  readonly schemaVersion: 1
  readonly name: string
  /** Further comparisons of the same run, each with figures of its own. */
  readonly also?: Readonly<Record<string, Comparison>>
  readonly facts?: Readonly<Record<string, Fact>>
  /** All that the figures above are chosen from, where a bench has several of the same kind. */
  readonly patterns?: Readonly<Record<string, Comparison>>
  /** Processor seconds of the load for one of the server, by side. */
  readonly load?: Readonly<Record<string, number>>
  /** What the ratios to peers, or the figure itself, are to reach. */
  readonly goals?: Readonly<Record<string, number>>
}

/** What a bench is given. */
export interface BenchContext {
  /** Runs that count, at least five. */
  readonly runs: number
  /** Share of the usual amount of work in a run; a test takes a small one. */
  readonly effort: number
  /** For people, on stderr. */
  say(text: string): void
  /** Ends something that the bench has begun, when it is over or interrupted. */
  ended(undo: () => Promise<void> | void): void
}

export interface Bench {
  readonly name: string
  readonly says: string
  /** @throws MusterError unavailable when a peer is not installed */
  run(context: BenchContext): Promise<Omit<Result, 'schemaVersion' | 'name'>>
}

export type MissingPeer = MusterError & { readonly code: 'unavailable' }

export const MIN_RUNS = 5

/** The middle one, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError('no values have no median')
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? 0
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? 0) + upper) / 2
}

/** Units per second of the server's processor. */
export function perCpuSecond({ count, cpuS }: Measured): number {
  if (cpuS <= 0) throw new RangeError('a run without processor time measures nothing: make it longer')
  return count / cpuS
}

/** Milliseconds of the server's processor per unit. */
export function cpuMsEach(measured: Measured): number {
  return 1_000 / perCpuSecond(measured)
}

/**
 * Runs the sides in turns (ours, first peer, second peer, ours …), so that what drifts on the machine drifts for all.
 * The first turns are rehearsals: caches and compilers warm up, and their figures are dropped. Every side has as many as
 * the one that needs most; one when nothing is said.
 */
export async function compare<Run = Measured>(
  sides: { readonly ours: Side<Run>; readonly peers: readonly Side<Run>[] },
  how: {
    readonly context: BenchContext
    readonly unit: string
    readonly better: 'higher' | 'lower'
    readonly rehearsals?: number
    figure(measured: Run): number
  },
): Promise<Comparison> {
  const all = [sides.ours, ...sides.peers]
  const values = all.map((): number[] => [])
  for (let run = 1 - (how.rehearsals ?? 1); run <= how.context.runs; run++) {
    for (const [index, side] of all.entries()) {
      const value = how.figure(await side.measure(Math.max(run, 0)))
      how.context.say(
        `  ${run <= 0 ? 'rehearsal' : `run ${run}`}  ${side.name.padEnd(40)} ${shown(value)} ${how.unit}`,
      )
      if (run > 0) values[index]?.push(value)
    }
  }
  const [ours, ...peers] = all.map((side, index) => figureOf(side, values[index] ?? []))
  if (ours === undefined) throw new RangeError('no side of ours')
  return { unit: how.unit, better: how.better, ours, peers, ...ratiosOf(ours, peers) }
}

/** Ours over each peer. */
export function ratiosOf(ours: Figure, peers: readonly Figure[]): Pick<Comparison, 'ratio' | 'ratios'> {
  const ratios = Object.fromEntries(peers.map((peer) => [peer.name, rounded(ours.value / peer.value)]))
  const [first] = peers
  return { ratio: first === undefined ? null : rounded(ours.value / first.value), ratios }
}

function figureOf({ name, command, version }: Omit<Side, 'measure'>, runs: readonly number[]): Figure {
  return { name, command, version, value: rounded(median(runs)), runs: runs.map(rounded) }
}

/** Four digits: more than a machine repeats. */
function rounded(value: number): number {
  return Number(value.toPrecision(4))
}

export function shown(value: number): string {
  return rounded(value).toLocaleString('en').replaceAll(',', ' ')
}
