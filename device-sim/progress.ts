import type { Clock } from './clock.ts'
import { bar, milliseconds, quantiles } from './report.ts'

/** A terminal, or a file or pipe that gets plain lines. */
export interface ProgressOutput {
  readonly isTTY?: boolean
  write(text: string): unknown
}

/** A phase of a run: one tick a device. */
export interface Phase {
  /** @param ms how long it took for this device */
  tick(ms: number): void
  end(): void
}

export interface Progress {
  phase(name: string, total: number): Phase
  line(text: string): void
  /** Times of every tick so far, by phase, ms. */
  times(): Readonly<Record<string, readonly number[]>>
}

/** A terminal is redrawn no more often, ms. */
const REDRAW_MS = 100

export function openProgress(output: ProgressOutput | null, clock: Clock): Progress {
  const times: Record<string, number[]> = {}
  return {
    times: () => times,
    line: (text) => void output?.write(`${text}\n`),
    phase(name, total) {
      const ticks: number[] = []
      times[name] = ticks
      return drawPhase({ name, total, ticks }, { output, clock })
    },
  }
}

/** A terminal sees a bar grow and go, for the summary repeats it; everything else gets one line at the end. */
function drawPhase(
  { name, total, ticks }: { name: string; total: number; ticks: number[] },
  { output, clock }: { output: ProgressOutput | null; clock: Clock },
): Phase {
  let drawnAt = 0
  const done = () => `${ticks.length}/${total}  p95 ${milliseconds(quantiles(ticks).p95)}`
  return {
    tick(ms) {
      ticks.push(ms)
      if (!output?.isTTY || clock.now() - drawnAt < REDRAW_MS) return
      drawnAt = clock.now()
      output.write(`\r  ${name.padEnd(8)} ${bar(ticks.length, total)} ${done()}\u001b[K`)
    },
    end: () => void output?.write(output.isTTY ? '\r\u001b[K' : `  ${name}: ${done()}\n`),
  }
}
