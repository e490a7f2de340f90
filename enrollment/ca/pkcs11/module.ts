/** The only importer of koffi: calls the functions of a PKCS#11 module in the octets that its header file lays down. */
import { existsSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { KoffiFunc } from 'koffi'
import { MusterError } from '#shared/errors'
import { type Cryptoki, CryptokiError, type Handle, RV } from './cryptoki.ts'
import { type Memory, memoryOf, WORD } from './memory.ts'

type Argument = Handle | Buffer | null
type Kind = 'word' | 'octet' | 'pointer'

/** Place in CK_FUNCTION_LIST (version 2.40), which has had the same order since version 2.0, and the arguments. */
const FUNCTIONS = {
  C_Initialize: [0, ['pointer']],
  C_Finalize: [1, ['pointer']],
  C_GetSlotList: [4, ['octet', 'pointer', 'pointer']],
  C_GetTokenInfo: [6, ['word', 'pointer']],
  C_OpenSession: [12, ['word', 'word', 'pointer', 'pointer', 'pointer']],
  C_CloseSession: [13, ['word']],
  C_Login: [18, ['word', 'word', 'pointer', 'word']],
  C_GetAttributeValue: [24, ['word', 'word', 'pointer', 'word']],
  C_FindObjectsInit: [26, ['word', 'pointer', 'word']],
  C_FindObjects: [27, ['word', 'pointer', 'word', 'pointer']],
  C_FindObjectsFinal: [28, ['word']],
  C_SignInit: [42, ['word', 'pointer', 'word']],
  C_Sign: [43, ['word', 'pointer', 'word', 'pointer', 'pointer']],
  C_GenerateKeyPair: [59, ['word', 'pointer', 'pointer', 'word', 'pointer', 'word', 'pointer', 'pointer']],
} as const satisfies Record<string, readonly [number, readonly Kind[]]>
type Name = keyof typeof FUNCTIONS

const TYPES = { word: 'unsigned long', octet: 'uint8_t', pointer: 'void *' } as const
const CKF_OS_LOCKING_OK = 2
/** CKF_RW_SESSION and CKF_SERIAL_SESSION. */
const READ_WRITE = 6
const CKU_USER = 1
/** Octets before the flags of CK_TOKEN_INFO: label, manufacturer, model, serial. */
const TOKEN_TEXT = { label: [0, 32], serial: [80, 96], octets: 96 } as const
/** The rest of CK_TOKEN_INFO is shorter. */
const TOKEN_INFO_OCTETS = 256
/** The longest is of RSA with 4096 bits. */
const SIGNATURE_OCTETS = 1_024
/** More than one is a fault already. */
const FOUND = 8

/** Loads koffi when a key lies in a token, not before. @throws MusterError unsupported (and the command that mends it) */
function koffi(): typeof import('koffi') {
  try {
    return createRequire(import.meta.url)('koffi')
  } catch (cause) {
    throw new MusterError(
      'unsupported',
      'Cannot use a PKCS#11 module: the package koffi is not installed; fix: npm install --no-save koffi@3.3.4',
      { cause },
    )
  }
}

/**
 * Opens a module: code that runs in this process from then on. Its calls run on threads of the pool, so that a token
 * that is slow or far away never stops the event loop.
 * @throws MusterError unsupported, config_invalid (no module, or not this machine's), key_file_insecure
 */
export function loadModule(path: string): Cryptoki {
  if (process.platform === 'win32' || !['x64', 'arm64'].includes(process.arch)) {
    throw new MusterError('unsupported', 'Cannot use a PKCS#11 module: its structures differ on this machine')
  }
  checkModule(path)
  const ffi = koffi()
  try {
    const library = ffi.load(path)
    const list: bigint[] = [0n]
    const rv: number = library.func('unsigned long C_GetFunctionList(_Out_ void **list)')(list)
    if (rv !== RV.CKR_OK) throw new CryptokiError('C_GetFunctionList', rv)
    // CK_VERSION is two octets, and the first pointer is aligned
    const pointer = (place: number) => ffi.decode(list[0], WORD + place * WORD, 'void *')
    const functions = Object.entries(FUNCTIONS).map(([name, [place, kinds]]) => {
      const types = kinds.map((kind) => TYPES[kind])
      return [name, ffi.decode(pointer(place), ffi.proto('unsigned long', types))] as const
    })
    return cryptoki(
      caller(new Map(functions), library),
      memoryOf((octets) => ffi.address(octets)),
    )
  } catch (cause) {
    const why = (cause as Error).message // koffi and this function throw nothing but errors
    throw new MusterError('config_invalid', `Cannot load the PKCS#11 module "${path}": ${why}`, { cause })
  }
}

function checkModule(path: string): void {
  if (!existsSync(path)) {
    throw new MusterError('config_invalid', `Cannot load the PKCS#11 module "${path}": it does not exist`)
  }
  if ((statSync(path).mode & 0o002) === 0) return
  throw new MusterError(
    'key_file_insecure',
    `Cannot load "${path}": everybody may write to it; fix: chmod o-w ${path}`,
  )
}

type Call = (name: Name, ...values: Argument[]) => Promise<void>
type Native = KoffiFunc<(...values: Argument[]) => number>

/** @param library held as long as its functions are */
function caller(functions: ReadonlyMap<string, Native>, library: object): Call {
  const held = new Set<object>([library])
  return (name, ...values) =>
    new Promise((resolve, reject) => {
      const native = functions.get(name)
      if (native === undefined) throw new TypeError(name)
      held.add(values) // the octets that pointers lead to, until the call is over
      native.async(...values, (error: Error | null, rv: number) => {
        held.delete(values)
        if (error) reject(error)
        else if (rv === RV.CKR_OK) resolve()
        else reject(new CryptokiError(name, Number(rv)))
      })
    })
}

/** Takes these answers for null, and passes on what else is thrown. */
function unless(...expected: readonly number[]): (error: unknown) => null {
  return (error) => {
    if (error instanceof CryptokiError && expected.includes(error.rv)) return null
    throw error
  }
}

function cryptoki(call: Call, memory: Memory): Cryptoki {
  return {
    async initialize() {
      const options = memory.words(0, 0, 0, 0, CKF_OS_LOCKING_OK, 0)
      await call('C_Initialize', options).catch(unless(RV.CKR_CRYPTOKI_ALREADY_INITIALIZED))
    },
    async finalize() {
      await call('C_Finalize', null).catch(unless(RV.CKR_CRYPTOKI_NOT_INITIALIZED))
    },
    async slots() {
      const count = memory.words(0)
      await call('C_GetSlotList', 1, null, count)
      const list = memory.octets(WORD * Math.max(1, Number(memory.read(count, 0))))
      await call('C_GetSlotList', 1, list, count)
      return memory.list(list, Number(memory.read(count, 0)))
    },
    async tokenInfo(slot) {
      const info = memory.octets(TOKEN_INFO_OCTETS)
      await call('C_GetTokenInfo', slot, info)
      const text = ([from, to]: readonly [number, number]) => info.toString('utf8', from, to).trimEnd()
      const flags = Number(memory.read(info.subarray(TOKEN_TEXT.octets), 0))
      return { label: text(TOKEN_TEXT.label), serial: text(TOKEN_TEXT.serial), flags }
    },
    async openSession(slot) {
      const session = memory.words(0)
      await call('C_OpenSession', slot, READ_WRITE, null, null, session)
      return memory.read(session, 0)
    },
    closeSession: (session) => call('C_CloseSession', session),
    async login(session, pin) {
      const octets = memory.copy(Buffer.from(pin, 'utf8'))
      try {
        await call('C_Login', session, CKU_USER, octets, octets.length)
      } catch (error) {
        unless(RV.CKR_USER_ALREADY_LOGGED_IN)(error)
      } finally {
        octets.fill(0)
      }
    },
    ...objects(call, memory),
    async sign(session, { mechanism, key, data }) {
      const chosen = memory.words(mechanism, 0, 0)
      await call('C_SignInit', session, chosen, key)
      const octets = memory.copy(data)
      const signature = memory.octets(SIGNATURE_OCTETS)
      const length = memory.words(SIGNATURE_OCTETS)
      await call('C_Sign', session, octets, octets.length, signature, length)
      return signature.subarray(0, Number(memory.read(length, 0)))
    },
  }
}

function objects(call: Call, memory: Memory): Pick<Cryptoki, 'find' | 'attribute' | 'generateKeyPair'> {
  return {
    async find(session, template) {
      await call('C_FindObjectsInit', session, memory.template(template), template.length)
      const [list, count] = [memory.octets(WORD * FOUND), memory.words(0)]
      try {
        await call('C_FindObjects', session, list, FOUND, count)
      } finally {
        await call('C_FindObjectsFinal', session)
      }
      return memory.list(list, Number(memory.read(count, 0)))
    },
    async attribute(session, { object, type }) {
      const asked = memory.words(type, 0, 0)
      const isAbsent = unless(RV.CKR_ATTRIBUTE_TYPE_INVALID, RV.CKR_ATTRIBUTE_SENSITIVE)
      if ((await call('C_GetAttributeValue', session, object, asked, 1).catch(isAbsent)) === null) return null
      const filled = memory.template([{ type, value: memory.octets(Number(memory.read(asked, 2))) }])
      await call('C_GetAttributeValue', session, object, filled, 1)
      return memory.pointedTo(filled)
    },
    async generateKeyPair(session, { mechanism, publicKey, privateKey }) {
      const templates = [
        memory.template(publicKey),
        publicKey.length,
        memory.template(privateKey),
        privateKey.length,
      ] as const
      const handles = [memory.words(0), memory.words(0)] as const
      await call('C_GenerateKeyPair', session, memory.words(mechanism, 0, 0), ...templates, ...handles)
    },
  }
}
