import { accessSync, constants, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { directoryUnusable, makeDirectory } from '#shared/directory'
import { MusterError } from '#shared/errors'
import { ports } from '#shared/layout'

/** Where clients of each port come from, for a sentence about it. */
const USES = {
  broker: 'the broker',
  enrollment: 'enrollment',
  admin: 'the admin API',
  http: 'the CRL',
} as const

/** A port, and what it is for. */
export interface PortUse {
  readonly use: string
  readonly port: number
  readonly address: string
}

/**
 * Makes the directory where it is missing, and makes sure that it can be written to, but not by everybody: who may
 * write to it can put other directories in the place of those in it.
 * @throws MusterError directory_unusable
 */
export function prepareDirectory(path: string): void {
  makeDirectory(path)
  try {
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (cause) {
    throw directoryUnusable(path, { cause })
  }
  if (process.platform !== 'win32' && (statSync(path).mode & 0o002) !== 0) {
    throw new MusterError(
      'directory_unusable',
      `Cannot use "${path}": everybody may write to it; fix: chmod o-w ${path}`,
    )
  }
}

/**
 * Makes sure that nobody listens where the plane is going to, before anything is started.
 * @throws MusterError port_taken, config_invalid (an address that this machine does not have, a port out of range)
 */
export async function checkPorts(
  base: number,
  address: string,
  more: readonly PortUse[] = [],
): Promise<void> {
  const taken = new Map<number, string>()
  for (const [name, port] of Object.entries(ports(base))) {
    if (!Number.isInteger(port) || port < 1 || port > 65_535) {
      throw new MusterError('config_invalid', `Cannot take --port-base ${base}: it makes ${port} a port`)
    }
    const use = USES[name as keyof typeof USES] // the keys are those of `ports`
    await checkPort({ use, port, address })
    taken.set(port, use)
  }
  for (const { use, port, address } of more) {
    const other = taken.get(port)
    if (other !== undefined)
      throw new MusterError('config_invalid', `Cannot use port ${port} for ${use}: it is that of ${other}`)
    taken.set(port, use)
    if (port !== 0) await checkPort({ use, port, address })
  }
}

async function checkPort({ use, port, address }: PortUse): Promise<void> {
  const server = createServer()
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  server.listen({ port, host: address, exclusive: true }, resolve)
  try {
    await promise
  } catch (cause) {
    throw portError({ use, port, address, cause: cause as NodeJS.ErrnoException }) // net emits errno exceptions
  } finally {
    server.close()
  }
}

function portError(request: PortUse & { readonly cause: NodeJS.ErrnoException }): MusterError {
  const { use, port, address, cause } = request
  if (cause.code === 'EADDRINUSE') {
    return new MusterError(
      'port_taken',
      `Cannot use port ${port} for ${use}: something listens there already`,
      { cause },
    )
  }
  const why =
    cause.code === 'EACCES' ? 'this user may not; take a higher --port-base' : (cause.code ?? cause.message)
  return new MusterError('config_invalid', `Cannot listen on ${address}:${port} for ${use}: ${why}`, {
    cause,
  })
}
