/** A plane of real processes whose clock the test moves: enrollment, a broker and devices under libfaketime. */
import { type ChildProcess, execFile, fork } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import type { Invitation, RolloverStatus, StatusView } from '#shared/api'
import { layout, ports } from '#shared/layout'
import { openAuthority } from '../../enrollment/ca/create-ca.ts'
import { underClock } from './fake-clock.ts'
import type { FleetOrder, Look, Seen } from './fleet-process.ts'
import { freePortBase, scratch } from './muster.ts'
import { MUSTER } from './plane.ts'

const DAY_MS = 86_400_000
/** Until a process must have answered; by the clock of the test, which is not faked, ms. */
const PATIENCE_MS = 180_000
const FLEET = fileURLToPath(new URL('./fleet-process.ts', import.meta.url))
const run = promisify(execFile)

/** What a command answered with `--json`, and its exit code. */
type Answer<T> = T & { readonly status: number }

export class Years {
  readonly data: string
  readonly #test: Test
  readonly #base: string
  readonly #portBase: number
  readonly #children: ChildProcess[] = []
  #fleet: ChildProcess | null = null
  #looks = 0
  #days = 0

  private constructor(test: Test, of: { base: string; portBase: number }) {
    this.#test = test
    this.#base = of.base
    this.#portBase = of.portBase
    this.data = join(of.base, 'data')
  }

  /** Enrollment with CAs that live so long, a broker, and devices that are enrolled and connected. */
  static async start(
    t: Test,
    of: { rootDays: number; issuingDays: number; deviceDays: number; devices: number },
  ): Promise<Years> {
    const years = new Years(t, { base: scratch(t), portBase: await freePortBase() })
    t.teardown(() => years.#end())
    years.#setClock()
    await years.#makeAuthority(of)
    await years.startEnrollment()
    await years.startBroker()
    await years.#startFleet(of)
    return years
  }

  /** Days since the start. */
  get days(): number {
    return this.#days
  }

  /**
   * All processes have the new time at once: it is in a file that they read whenever they ask for the time.
   * @param days may have a fraction
   */
  pass(days: number): void {
    this.#days += days
    this.#setClock()
  }

  /** Resolves when every device is connected, has life left and the newest bundle. @throws when that takes too long */
  async devices(version: number): Promise<Seen['devices']> {
    const fleet = this.#fleet
    if (fleet === null) throw new Error('there are no devices')
    const look: Look = { number: ++this.#looks, version }
    const signal = AbortSignal.timeout(PATIENCE_MS)
    fleet.send(look)
    try {
      for (;;) {
        const [answer] = (await once(fleet, 'message', { signal })) as [Seen] // what fleet-process.ts sends
        if (answer.number === look.number) return answer.devices
      }
    } catch (cause) {
      throw new Error(`day ${this.#days}, bundle ${version} is awaited: ${await whyNot(fleet)}`, { cause })
    }
  }

  /** `muster <words> --json` under the same clock. */
  async muster<T>(...words: string[]): Promise<Answer<T>> {
    const args = [MUSTER, ...words, '--data', this.data, '--json']
    const options = { env: this.#environment(), timeout: PATIENCE_MS }
    try {
      const { stdout } = await run(process.execPath, args, options)
      return { ...JSON.parse(stdout), status: 0 }
    } catch (error) {
      const { code, stdout = '' } = error as { code?: number; stdout?: string } // of execFile
      if (stdout === '')
        throw new Error(`muster ${words.join(' ')} on day ${this.#days} said nothing`, { cause: error })
      return { ...JSON.parse(stdout), status: code ?? -1 }
    }
  }

  status(): Promise<Answer<StatusView>> {
    return this.muster('status')
  }

  rollover(): Promise<Answer<RolloverStatus>> {
    return this.muster('ca', 'rollover', 'status')
  }

  logOf(name: 'enrollment' | 'broker' | 'fleet'): string {
    return readFileSync(join(this.#base, `${name}.log`), 'utf8')
  }

  /** Ends enrollment at once, and starts it again. */
  async restartEnrollment(crashAt?: string): Promise<void> {
    const [enrollment] = this.#children
    if (enrollment?.exitCode === null && enrollment.signalCode === null) {
      const gone = once(enrollment, 'exit')
      enrollment.kill('SIGKILL')
      await gone
    }
    this.#children.shift()
    await this.#startProcess('enrollment', ['--port-base', String(this.#portBase)], crashAt)
    const started = this.#children.pop()
    if (started) this.#children.unshift(started)
  }

  /** Ends every process at once. */
  async stop(): Promise<void> {
    for (const child of this.#children.splice(0).toReversed()) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const gone = once(child, 'exit')
      child.kill('SIGKILL')
      await gone
    }
  }

  startEnrollment(...args: string[]): Promise<void> {
    return this.#startProcess('enrollment', ['--port-base', String(this.#portBase), ...args])
  }

  #setClock(): void {
    const path = join(this.#base, 'clock')
    writeFileSync(`${path}.new`, `+${Math.round((this.#days * DAY_MS) / 1000)}\n`)
    renameSync(`${path}.new`, path) // no process reads half of it
  }

  #environment(): NodeJS.ProcessEnv {
    return underClock({ file: join(this.#base, 'clock') })
  }

  async #makeAuthority(of: { rootDays: number; issuingDays: number }): Promise<void> {
    const directory = layout(this.data).ca
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const passphrase = 'a long passphrase for a test'
    writeFileSync(join(directory, 'passphrase'), `${passphrase}\n`, { mode: 0o600 })
    const httpBase = `http://localhost:${ports(this.#portBase).http}`
    await openAuthority({
      ...{ directory, passphrase, httpBase, trustDomain: 'muster.local', now: Date.now() },
      lifetimes: { rootMs: of.rootDays * DAY_MS, issuingMs: of.issuingDays * DAY_MS },
    })
  }

  async #startProcess(
    name: 'enrollment' | 'broker',
    args: readonly string[],
    crashAt?: string,
  ): Promise<void> {
    const child = fork(MUSTER, [name, '--data', this.data, ...args], {
      env: { ...this.#environment(), ...(crashAt === undefined ? {} : { MUSTER_CRASH_AT: crashAt }) },
      execArgv: [],
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    })
    await this.#ready(child, name)
  }

  /** With a new invitation. */
  async startBroker(): Promise<void> {
    const path = join(this.#base, 'invitation.json')
    const { status: _, ...invitation } = await this.muster<Invitation>('broker', 'invite', '--id', 'north')
    writeFileSync(path, JSON.stringify(invitation))
    const port = String(ports(this.#portBase).broker)
    // a step of the clock is longer than a registry may be silent
    await this.#startProcess('broker', ['--invite', path, '--port', port, '--max-staleness', '30d'])
  }

  async #startFleet({ devices: count, deviceDays }: { devices: number; deviceDays: number }): Promise<void> {
    await this.muster('fleet', 'create', 'yard', '--lifetime', `${deviceDays}d`)
    await this.muster('batch', 'create', 'yard-1', '--fleet', 'yard')
    const { token } = await this.muster<{ token: string }>(
      ...['token', 'create', '--batch', 'yard-1', '--uses', String(count), '--expires', '24h'],
    )
    await this.startDevices({ directory: 'devices', count, token })
  }

  async startDevices(of: { directory: string; count: number; token: string }): Promise<void> {
    const at = ports(this.#portBase)
    const order: FleetOrder = {
      ...{ ...of, directory: join(this.#base, of.directory) },
      broker: `mqtts://localhost:${at.broker}`,
      enrollment: `https://localhost:${at.enrollment}`,
      caFile: layout(this.data).rootCertificate,
    }
    const fleet = fork(FLEET, [JSON.stringify(order)], {
      env: this.#environment(),
      execArgv: [],
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    })
    await this.#ready(fleet, 'fleet')
    this.#fleet = fleet
  }

  async #ready(child: ChildProcess, name: string): Promise<void> {
    const log = createWriteStream(join(this.#base, `${name}.log`), { flags: 'a' })
    child.stdout?.pipe(log)
    child.stderr?.pipe(log)
    let said = ''
    child.stderr?.on('data', (text) => {
      said = (said + text).slice(-16_000)
    })
    this.#children.push(child)
    const signal = AbortSignal.timeout(PATIENCE_MS)
    const fault = await Promise.race([
      once(child, 'message', { signal }).then(([message]) =>
        message.type === 'ready' ? '' : message.message,
      ),
      once(child, 'close', { signal }).then(() => `it ended: ${said}`),
    ])
    if (fault !== '') throw new Error(`the ${name} did not start: ${fault}`)
  }

  async #end(): Promise<void> {
    await this.stop()
    this.#test.comment(`${this.#days} days`)
  }
}

async function whyNot(fleet: ChildProcess): Promise<string> {
  fleet.send('why')
  const signal = AbortSignal.timeout(PATIENCE_MS)
  for (;;) {
    const [answer] = (await once(fleet, 'message', { signal })) as [{ why?: string[] }] // what fleet-process.ts sends
    if (answer.why !== undefined) return answer.why.join('\n')
  }
}

/** The operator, who does what the alarms ask for: the next step of a rollover at each look, if there is one. */
export class YearsOperator {
  /** `<day> <what>` */
  readonly done: string[] = []
  /** `<CA> <id> <days>`, each once. */
  readonly alarms: string[] = []
  readonly #years: Years
  readonly #lifetimeDays: number
  /** A rollover is under way, or a CA ends within a month. */
  isBusy = false

  constructor(years: Years, { lifetimeDays }: { lifetimeDays: number }) {
    this.#years = years
    this.#lifetimeDays = lifetimeDays
  }

  /** Returns the version of the bundle that devices are to have. */
  async look(): Promise<number> {
    const { alarms } = await this.#years.status()
    for (const { name, id, withinDays } of alarms) {
      const alarm = `${name} ${id} ${withinDays}`
      if (!this.alarms.includes(alarm)) this.alarms.push(alarm)
    }
    const { rollover, bundleVersion } = await this.#years.rollover()
    const ends = (days: number) => alarms.some(({ withinDays }) => withinDays <= days)
    const isOpen = rollover !== null && rollover.endedAt === null
    this.isBusy = isOpen || ends(30)
    if (!isOpen && ends(30)) {
      const isRoot = alarms.some(({ name }) => name === 'root CA')
      const days = isRoot ? 3650 : this.#lifetimeDays
      await this.#take('start', ...(isRoot ? ['--root'] : []), '--lifetime', `${days}d`)
      return bundleVersion + 1
    }
    if (rollover?.state === 'published' && ends(7)) await this.#take('cut-over')
    if (rollover?.state === 'cut-over' && (await this.#take('finish'))) return bundleVersion + 1
    return bundleVersion
  }

  async #take(step: string, ...options: string[]): Promise<boolean> {
    const { status } = await this.#years.muster('ca', 'rollover', step, ...options)
    if (status === 0)
      this.done.push(`${Math.round(this.#years.days)} ${[step, ...options.slice(0, 1)].join(' ')}`)
    return status === 0
  }
}
