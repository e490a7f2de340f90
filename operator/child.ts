import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, closeSync, existsSync, fstatSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { brokerNodeOptions } from '#shared/broker-node'
import { directoryUnusable } from '#shared/directory'
import { MusterError } from '#shared/errors'
import type { ProcessMessage } from '#shared/service'
import { environmentFor } from './config.ts'

export interface ChildSpec {
  /** `enrollment`, `broker`: what people read, and the name of the log. */
  readonly name: string
  /** Arguments of `muster`. */
  readonly args: readonly string[]
  /** More of them at the first start only; a child that is started again has what they gave it. */
  readonly firstArgs?: readonly string[]
  /** Where its output is appended, mode 0600. */
  readonly logFile: string
}

export interface Ended {
  readonly status: number | null
  readonly signal: NodeJS.Signals | null
}

/** A running process of ours. */
export interface Child {
  readonly process: ChildProcess
  /** Where its part of the log begins. */
  readonly logStart: number
  /** Resolves when it has ended and its channel is closed. */
  readonly ended: Promise<Ended>
}

/** Longest from start to `ready`, ms: the first start makes keys and certificates. */
const READY_DEADLINE_MS = 30_000

/**
 * Starts `muster <args>` with its output in the log. It leads a process group of its own: Ctrl-C of the terminal
 * reaches the supervisor alone, which then stops its children in order. It ends by itself when the supervisor is gone.
 */
export function spawnChild(bin: string, spec: Pick<ChildSpec, 'name' | 'args' | 'logFile'>): Child {
  restoreDirectory(dirname(spec.logFile))
  const log = openSync(spec.logFile, 'a', 0o600)
  try {
    chmodSync(spec.logFile, 0o600)
    const logStart = fstatSync(log).size
    const stdio = ['ignore', log, log, 'ipc'] as const
    const environment = environmentFor(spec.name)
    const { execArgv } = process
    const options = spec.name === 'broker' ? brokerNodeOptions({ bin, execArgv, environment }) : []
    const child = spawn(process.execPath, [...options, bin, ...spec.args], {
      detached: true,
      stdio: [...stdio],
      env: environment,
    })
    return { ...follow(child), logStart }
  } finally {
    closeSync(log)
  }
}

/**
 * Somebody may have deleted it since the child before this one. What it is in is not made: a plane whose data were
 * deleted is not to begin anew by itself.
 */
function restoreDirectory(path: string): void {
  try {
    if (!existsSync(path)) mkdirSync(path, { mode: 0o700 })
  } catch (cause) {
    throw directoryUnusable(path, { cause })
  }
}

/** Starts `muster <args>` with its output on our stderr, in a process group of its own. */
export function spawnShown(bin: string, args: readonly string[]): Child {
  const child = spawn(process.execPath, [bin, ...args], {
    detached: true,
    stdio: ['ignore', 2, 2, 'ipc'],
    env: environmentFor('shown'),
  })
  return { ...follow(child), logStart: 0 }
}

function follow(child: ChildProcess): Omit<Child, 'logStart'> {
  const { promise, resolve } = Promise.withResolvers<Ended>()
  child.once('close', (status, signal) => resolve({ status, signal }))
  child.once('error', () => resolve({ status: null, signal: null })) // it could not be started at all
  return { process: child, ended: promise }
}

/**
 * Waits until the child says that it is ready.
 * @throws MusterError with the child's own code and sentence when it gives one; internal when it ends without;
 *   unavailable when it is not ready in time
 */
export async function untilReady(child: Child, spec: ChildSpec): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const heard = (message: ProcessMessage) => {
    if (message.type === 'ready') resolve()
    else reject(new MusterError(message.code, message.message))
  }
  const late = setTimeout(() => {
    const seconds = READY_DEADLINE_MS / 1_000
    reject(
      new MusterError(
        'unavailable',
        `Cannot start ${spec.name}: not ready after ${seconds} s; see ${spec.logFile}`,
      ),
    )
  }, READY_DEADLINE_MS)
  child.process.on('message', heard)
  void child.ended.then((ended) => {
    const says = lastWords(spec.logFile, child.logStart) ?? `Cannot start ${spec.name}: it ${howEnded(ended)}`
    const where = existsSync(spec.logFile) ? `see ${spec.logFile}` : `its log ${spec.logFile} was deleted`
    reject(new MusterError('internal', `${says}; ${where}`))
  })
  try {
    await promise
  } finally {
    clearTimeout(late)
    child.process.off('message', heard)
  }
}

/** The sentence in a log that is no event: what a process wrote that could not start. Null without one, or without the log. */
function lastWords(path: string, from: number): string | null {
  try {
    const lines = readFileSync(path).subarray(from).toString('utf8').split('\n')
    return lines.find((line) => /^[A-Z]/.test(line)) ?? null
  } catch {
    return null // the end of a child is told all the same
  }
}

export function howEnded({ status, signal }: Ended): string {
  return signal ? `was ended by ${signal}` : `ended with status ${status ?? 'unknown'}`
}

/** Asks the child to stop, and kills it when it has not after `deadlineMs`. */
export async function stopChild(child: Child, deadlineMs: number): Promise<Ended> {
  child.process.kill('SIGTERM')
  const late = setTimeout(() => child.process.kill('SIGKILL'), deadlineMs)
  try {
    return await child.ended
  } finally {
    clearTimeout(late)
  }
}
