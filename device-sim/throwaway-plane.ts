import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, watch } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { makeDirectory } from '#shared/directory'
import { MusterError } from '#shared/errors'
import { layout, ports, type Ready } from '#shared/layout'
import type { Random } from './backoff.ts'

/** A plane of its own: `muster up --no-demo` in a child process, with a data directory that goes with it. */
export interface Plane {
  readonly data: string
  readonly ready: Ready
  readonly portBase: number
  readonly child: ChildProcess
  /** What it has written to stderr, the newest part. */
  log(): string
  /** Stops it and removes its data directory. */
  stop(): Promise<void>
}

const READY_DEADLINE_MS = 60_000
const STOP_DEADLINE_MS = 15_000
/** All four ports stay below the range from which the kernel takes ports for outgoing connections. */
const BASES = { from: 10_000, to: 31_000 }
const LOG_KEPT = 16_384

export interface PlaneOptions {
  readonly random: Random
  /** Of the child. */
  readonly environment: NodeJS.ProcessEnv
  /** A directory of the caller's, which stays; without it a temporary one, which goes. */
  readonly data?: string
  /** Called with `stop` as soon as there is something to stop, for an end before the plane is ready. */
  readonly onSpawn?: (stop: () => Promise<void>) => void
}

/**
 * @throws MusterError unavailable when it does not get ready
 */
export async function startPlane(options: PlaneOptions): Promise<Plane> {
  const data = options.data ?? mkdtempSync(join(tmpdir(), 'muster-plane-'))
  makeDirectory(data)
  const portBase = await freeBase(options.random)
  const { MUSTER_CRASH_AT: _, ...environment } = options.environment // meant for the simulator, not for its plane
  const program = fileURLToPath(new URL('../bin/muster.mjs', import.meta.url))
  const child = spawn(
    process.execPath,
    [program, 'up', '--no-demo', '--data', data, '--port-base', String(portBase)],
    { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], env: environment },
  )
  let log = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    log = (log + text).slice(-LOG_KEPT)
  })
  const stop = async () => {
    await end(child)
    if (!options.data) rmSync(data, { recursive: true, force: true })
  }
  options.onSpawn?.(stop)
  try {
    const ready = await becomeReady(child, layout(data).ready)
    return { data, ready, portBase, child, log: () => log, stop }
  } catch (cause) {
    await stop()
    const lines = log.trim().split('\n').slice(-5).join('\n')
    throw new MusterError('unavailable', `Cannot start a plane: ${(cause as Error).message}\n${lines}`, {
      cause,
    }) // becomeReady throws Errors
  }
}

/** Resolves when `ready.json` is whole. */
async function becomeReady(child: ChildProcess, path: string): Promise<Ready> {
  const settled = Promise.withResolvers<Ready>()
  const look = () => {
    try {
      const ready = JSON.parse(readFileSync(path, 'utf8')) as Ready // our own program wrote it
      if (ready.pid === child.pid) settled.resolve(ready) // not one that was killed there
    } catch {
      // Not there yet; the watcher tells of the next change.
    }
  }
  const watcher = watch(join(path, '..'), (_, name) => {
    if (name === basename(path)) look()
  })
  const alarm = setTimeout(() => settled.reject(new Error('it was not ready in time')), READY_DEADLINE_MS)
  const ended = (code: number | null, signal: string | null) =>
    settled.reject(new Error(`it ended with ${signal ?? `exit code ${code}`}`))
  child.once('exit', ended)
  look()
  try {
    return await settled.promise
  } finally {
    clearTimeout(alarm)
    watcher.close()
    child.off('exit', ended)
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const alarm = setTimeout(() => child.kill('SIGKILL'), STOP_DEADLINE_MS)
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  await exited
  clearTimeout(alarm)
}

/** A port base whose four ports are free. @throws MusterError port_taken */
export async function freeBase(random: Random): Promise<number> {
  for (let attempt = 0; attempt < 50; attempt++) {
    const base = BASES.from + Math.floor(random() * (BASES.to - BASES.from))
    const free = await Promise.all(Object.values(ports(base)).map(isFree))
    if (free.every((is) => is)) return base
  }
  throw new MusterError('port_taken', 'Cannot start a plane: no four free ports in 50 attempts')
}

async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  try {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    server.close()
    await once(server, 'close')
    return true
  } catch {
    return false
  }
}
