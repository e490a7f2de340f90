import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import type { BenchContext } from './harness.ts'
import { newDirectory } from './plane.ts'
import { programBeside, type Server } from './processes.ts'

const ANSWER_DEADLINE_MS = 10_000

/** Asks a server how long its event loop stood still: an option with which to start it, and the question. */
export interface LagProbe {
  readonly options: readonly string[]
  /** The longest since it was asked last, ms. */
  longest(server: Server): Promise<number>
}

export function lagProbe(context: BenchContext): LagProbe {
  const out = join(newDirectory(context), 'lag')
  const preload = pathToFileURL(programBeside(import.meta.url, 'loop-lag'))
  preload.searchParams.set('out', out)
  return {
    options: ['--import', preload.href],
    async longest({ child }) {
      rmSync(out, { force: true })
      child.kill('SIGUSR2')
      const deadline = performance.now() + ANSWER_DEADLINE_MS
      for (; performance.now() < deadline; await setTimeout(20)) {
        const said = existsSync(out) ? readFileSync(out, 'utf8') : ''
        if (said !== '') return Number(said)
      }
      return Number.NaN
    },
  }
}
