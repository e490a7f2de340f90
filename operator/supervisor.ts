import { existsSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { MusterError } from '#shared/errors'
import {
  type Child,
  type ChildSpec,
  type Ended,
  howEnded,
  spawnChild,
  spawnShown,
  stopChild,
  untilReady,
} from './child.ts'

/** Longest that a child may take to stop, ms; the services give each of their parts 5 s. */
const STOP_DEADLINE_MS = 15_000
/** First pause before a child that died is started again, ms; it doubles with every failure. */
const FIRST_PAUSE_MS = 500
const LONGEST_PAUSE_MS = 30_000
/** A child that lived so long begins with the first pause again, ms. */
const STABLE_MS = 60_000

export interface SupervisorDeps {
  /** Path of `bin/muster.mjs`. */
  readonly bin: string
  readonly now: () => number
  /** Tells the person at the terminal what happens to the children. */
  say(text: string): void
}

interface Running {
  readonly name: string
  readonly child: Child
  /** Null when its output is shown. */
  readonly logFile: string | null
}

/** Keeps child processes running, in the order in which they were started, until `stop`. */
export class Supervisor {
  readonly #deps: SupervisorDeps
  readonly #running: Running[] = []
  readonly #stopping = new AbortController()
  readonly #watches: Promise<void>[] = []

  constructor(deps: SupervisorDeps) {
    this.#deps = deps
  }

  /**
   * Starts a child and waits until it is ready; from then on it is started again whenever it dies.
   * @throws MusterError as `untilReady`
   */
  async start(spec: ChildSpec): Promise<void> {
    const child = await this.#launch({ ...spec, args: [...spec.args, ...(spec.firstArgs ?? [])] })
    this.#watches.push(this.#keep(spec, child))
  }

  /** Runs a child that is to end by itself, its output on our stderr; `stop` ends it like the others. */
  async runOnce(name: string, args: readonly string[]): Promise<Ended> {
    this.#refuseWhenStopping(name)
    const child = spawnShown(this.#deps.bin, args)
    this.#running.push({ name, child, logFile: null })
    return child.ended
  }

  /** Stops the children, the last one first; resolves when every one has ended. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    for (const { child } of this.#running.toReversed()) await stopChild(child, STOP_DEADLINE_MS)
    await Promise.all(this.#watches)
    for (const { name, logFile } of this.#running) {
      if (logFile === null || existsSync(logFile)) continue
      this.#deps.say(`The log of the ${name}, ${logFile}, was deleted while it ran: what it said is lost.`)
    }
  }

  /** Ends every child at once, without letting it finish. */
  kill(): void {
    this.#stopping.abort()
    for (const { child } of this.#running) child.process.kill('SIGKILL')
  }

  /** A start that was under way when the signal came must not leave a child behind. */
  #refuseWhenStopping(name: string): void {
    if (this.#stopping.signal.aborted) {
      throw new MusterError('unavailable', `Cannot start ${name}: the plane is stopping`)
    }
  }

  async #launch(spec: ChildSpec): Promise<Child> {
    this.#refuseWhenStopping(spec.name)
    const child = spawnChild(this.#deps.bin, spec)
    const entry = { name: spec.name, child, logFile: spec.logFile }
    // A child that is started again takes the place of the one that died, so that the order of stopping stays.
    const place = this.#running.findIndex(({ name }) => name === spec.name)
    if (place < 0) this.#running.push(entry)
    else this.#running[place] = entry
    try {
      await untilReady(child, spec)
    } catch (error) {
      await stopChild(child, STOP_DEADLINE_MS)
      throw error
    }
    return child
  }

  async #keep(spec: ChildSpec, first: Child): Promise<void> {
    let child: Child | null = first
    let startedAt = this.#deps.now()
    let pauseMs = FIRST_PAUSE_MS
    while (!this.#stopping.signal.aborted) {
      if (child) {
        const ended = await child.ended
        if (this.#stopping.signal.aborted) return
        if (this.#deps.now() - startedAt > STABLE_MS) pauseMs = FIRST_PAUSE_MS
        this.#deps.say(`The ${spec.name} ${howEnded(ended)}; starting it again. Its log: ${spec.logFile}`)
      }
      await this.#pause(pauseMs)
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)
      if (this.#stopping.signal.aborted) return
      startedAt = this.#deps.now()
      child = await this.#relaunch(spec)
    }
  }

  async #relaunch(spec: ChildSpec): Promise<Child | null> {
    try {
      const child = await this.#launch(spec)
      this.#deps.say(`The ${spec.name} is back.`)
      return child
    } catch (error) {
      if (!this.#stopping.signal.aborted) this.#deps.say(`${(error as Error).message}; trying again.`)
      return null
    }
  }

  async #pause(ms: number): Promise<void> {
    await setTimeout(ms, undefined, { signal: this.#stopping.signal }).catch(() => {}) // stopping ends the pause
  }
}
