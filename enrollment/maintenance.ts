import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { MusterError } from '#shared/errors'
import { writeFileDurably } from '#shared/files'
import { layout } from '#shared/layout'
import { lockDirectory } from '#shared/sqlite'
import type { KeyUris } from './ca/authority.ts'
import { caDirectory, prepareDirectory } from './ca/ca-directory.ts'
import { openAuthority } from './ca/create-ca.ts'
import type { KeyAccess } from './ca/key-access.ts'
import {
  followRoot,
  installCertificates,
  isAwaitingInstall,
  type OfflineNames,
  requestIssuers,
  signIssuer,
} from './ca/offline-root.ts'
import { loadModule } from './ca/pkcs11/module.ts'
import { Tokens } from './ca/pkcs11/tokens.ts'
import { ownSecrets } from './config.ts'
import { readPassphrase, readPin } from './passphrase.ts'
import { type Backup, makeBackup } from './registry/backup.ts'
import { type Restored, restoreBackup } from './registry/restore.ts'
import { checkMadeBefore } from './signing-clock.ts'

/** What is done to the data directory of a plane on this machine, by commands that do not go through the admin API. */
export interface Maintenance {
  backup(request: { data: string; out: string; journal: string | null }): Backup
  restore(request: {
    data: string
    backup: string
    journal: string | null
    acceptLoss: boolean
  }): Promise<Restored>
  /** Makes the CAs, as the first start would, with keys in security modules. Returns the SHA-256 of the root. */
  init(request: OfflineNames & { data: string; keys?: KeyUris }): Promise<string>
  /** Keys of the issuing CAs and requests for them, for a root elsewhere. Returns the paths of the requests. */
  initOffline(request: OfflineNames & { data: string; keys?: KeyUris }): Promise<string[]>
  /** Signs a request with the root in a directory; returns the path of the chain. */
  signIssuer(
    request: OfflineNames & { rootDirectory: string; csr: string; rootKey?: string | null },
  ): Promise<string>
  /** Makes a root that follows the one in another directory; returns its SHA-256. */
  nextRoot(
    request: OfflineNames & { rootDirectory: string; newRootDirectory: string; rootKey?: string | null },
  ): Promise<string>
  /** Returns the SHA-256 of the root. */
  install(request: { data: string; certificates: readonly string[] }): Promise<string>
  /** True while the plane in the directory has keys and waits for its first certificates. */
  isAwaiting(request: { data: string }): boolean
}

export function openMaintenance(now: () => number = Date.now): Maintenance {
  const at = (data: string, journal: string | null) => {
    const directories = layout(data)
    return { layout: directories, journal: journal === null ? directories.journal : resolve(journal) }
  }
  return {
    backup: ({ data, out, journal }) => makeBackup({ ...at(data, journal), out: resolve(out), now: now() }),
    restore: ({ data, backup, journal, acceptLoss }) =>
      restoreBackup({
        ...at(data, journal),
        backup: resolve(backup),
        acceptLoss,
        epoch: randomBytes(16).toString('hex'),
        now: now(),
      }),
    init: async ({ data, ...names }) => {
      const { ca, enrollment } = layout(data)
      mkdirSync(enrollment, { recursive: true, mode: 0o700 })
      const lock = lockDirectory(join(enrollment, 'lock.db'))
      try {
        checkMadeBefore(now())
        const { rootId, created } = await withKeys(ca, (access) =>
          openAuthority({ directory: ca, ...names, ...access, now: now() }),
        )
        if (created) return rootId
      } finally {
        lock.release()
      }
      throw new MusterError('conflict', `Cannot make CAs in "${ca}": there are some`)
    },
    initOffline: ({ data, ...names }) => {
      const { ca } = layout(data)
      return withKeys(ca, (access) => requestIssuers(ca, { ...names, ...access }))
    },
    signIssuer: async ({ rootDirectory, csr, rootKey, ...names }) => {
      checkMadeBefore(now())
      const directory = resolve(rootDirectory)
      const { chain } = await withKeys(directory, (access) =>
        signIssuer(directory, {
          ...names,
          ...access,
          ...(rootKey ? { rootKey } : {}),
          csr: readFileSync(csr, 'utf8'),
          now: now(),
        }),
      )
      const path = join(directory, `${basename(csr, '.csr')}.chain.pem`)
      writeFileDurably(path, chain)
      return path
    },
    nextRoot: async ({ rootDirectory, newRootDirectory, rootKey, ...names }) => {
      checkMadeBefore(now())
      const [directory, newDirectory] = [resolve(rootDirectory), resolve(newRootDirectory)]
      return withKeys(directory, (access) =>
        withKeys(newDirectory, (newAccess) =>
          followRoot(directory, {
            ...names,
            ...access,
            ...(rootKey ? { rootKey } : {}),
            ...{ newDirectory, newAccess, now: now() },
          }),
        ),
      )
    },
    isAwaiting: ({ data }) => isAwaitingInstall(layout(data).ca),
    install: ({ data, certificates }) => {
      const { ca } = layout(data)
      const pems = certificates.map((path) => readFileSync(path, 'utf8'))
      return withKeys(ca, (access) => installCertificates(ca, { pems, ...access }))
    },
  }
}

/** With the secrets as `muster enrollment` finds them: file, environment, credential; a passphrase is made beside the keys. */
async function withKeys<T>(directory: string, work: (access: KeyAccess) => Promise<T>): Promise<T> {
  prepareDirectory(caDirectory(directory))
  const { passphrase, pin } = ownSecrets(directory)
  const tokens = new Tokens({ load: loadModule, pin: () => readPin(pin), now: Date.now })
  try {
    return await work({ passphrase: readPassphrase(passphrase, randomBytes), tokens })
  } finally {
    await tokens.close()
  }
}
